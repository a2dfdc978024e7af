"""Sub-models: engines, the model cache, embeddings."""

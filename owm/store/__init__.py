"""What a peer keeps on disk: SQLite for its logs and state, and content-addressed blobs."""

from owm.store._blobs import CHUNK_BYTES, BlobStore
from owm.store._entries import Content, TaskEntry, read_content, read_tasks, task_view
from owm.store._retention import Retention
from owm.store._schema import SCHEMA_VERSION
from owm.store._store import Store

__all__ = [
    "CHUNK_BYTES",
    "SCHEMA_VERSION",
    "BlobStore",
    "Content",
    "Retention",
    "Store",
    "TaskEntry",
    "read_content",
    "read_tasks",
    "task_view",
]

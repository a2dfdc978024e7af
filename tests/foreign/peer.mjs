// A js-libp2p peer driven by JSON lines: {"id": 1, "do": "connect", ...} on stdin, {"id": 1, "ok": ...} on stdout.
// Topic messages arrive as {"topic": ..., "data": base64, "from": ...}.
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import { identity } from 'multiformats/hashes/identity'
import * as Digest from 'multiformats/hashes/digest'
import { peerIdFromString } from '@libp2p/peer-id'

const options = JSON.parse(process.argv[2])
const say = (message) => process.stdout.write(JSON.stringify(message) + '\n')
const bytes = (text) => new Uint8Array(Buffer.from(text, 'base64'))
const base64 = (data) => Buffer.from(data).toString('base64')

// The specification's, go's and py's default. js's own has the author's key where they have its peer id: whoever is
// told of such an id asks for what it has, and waits in vain for a message of that name.
const authorAndNumber = ({ from, sequenceNumber }) => {
  const number = Buffer.alloc(8)
  number.writeBigUInt64BE(sequenceNumber)
  return Buffer.concat([from.toMultihash().bytes, number])
}

const node = await createLibp2p({
  privateKey: await generateKeyPairFromSeed('Ed25519', bytes(options.seed)),
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => false },
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({
      allowPublishToZeroTopicPeers: true, scoreParams: { IPColocationFactorWeight: 0 }, msgIdFn: authorAndNumber
    }),
    dht: kadDHT({
      protocol: options.dht, clientMode: false, peerInfoMapper: passthroughMapper,
      validators: { owm: async () => {} }, selectors: { owm: () => 0 }
    })
  }
})

async function echo (stream) {
  for await (const chunk of stream) {
    if (!stream.send(chunk.subarray())) await new Promise((resolve) => stream.addEventListener('drain', resolve, { once: true }))
  }
  await stream.close()
}
for (const protocol of options.echo) await node.handle(protocol, (stream) => { echo(stream).catch((error) => stream.abort(error)) })

node.services.pubsub.addEventListener('message', ({ detail }) =>
  say({ topic: detail.topic, data: base64(detail.data), from: detail.from?.toString() ?? '' }))

const target = (m) => multiaddr(m.address)
const last = async (events, name) => {
  const found = []
  for await (const event of events) if (event.name === name) found.push(event)
  return found
}
const actions = {
  connect: async (m) => (await node.dial(target(m))).remotePeer.toString(),
  peers: async () => node.getPeers().map((p) => p.toString()),
  protocols: async (m) => (await node.peerStore.get(peerIdFromString(m.peer))).protocols,
  addresses: async (m) => (await node.peerStore.get(peerIdFromString(m.peer))).addresses.map((a) => a.multiaddr.toString()),
  ping: async (m) => node.services.ping.ping(peerIdFromString(m.peer)),
  echo: async (m) => {
    // Sends `size` bytes to an echo handler in pieces and counts what comes back.
    const stream = await node.dialProtocol(peerIdFromString(m.peer), m.protocol)
    const reading = (async () => {
      let received = 0, sum = 0
      for await (const chunk of stream) {
        for (const byte of chunk.subarray()) { received++; sum = (sum + byte) % 65521 }
        if (received >= m.size) break
      }
      return [received, sum]
    })()
    const piece = new Uint8Array(65536).map((_, i) => i % 251)
    let sent = 0, sum = 0
    while (sent < m.size) {
      const part = piece.subarray(0, Math.min(piece.length, m.size - sent))
      for (const byte of part) sum = (sum + byte) % 65521
      sent += part.length
      if (!stream.send(part)) await new Promise((resolve) => stream.addEventListener('drain', resolve, { once: true }))
    }
    // Half-closed only after the echo is back: go's daemon drops both directions of a half-closed stream.
    const [received, back] = await reading
    await stream.close()
    return { sent, received, same: sum === back }
  },
  subscribe: async (m) => node.services.pubsub.subscribe(m.topic),
  subscribers: async (m) => node.services.pubsub.getSubscribers(m.topic).map((p) => p.toString()),
  publish: async (m) => (await node.services.pubsub.publish(m.topic, bytes(m.data))).recipients.length,
  find_peer: async (m) => (await last(node.services.dht.findPeer(peerIdFromString(m.peer)), 'FINAL_PEER'))
    .map((e) => e.peer.multiaddrs.map(String))[0] ?? null,
  provide: async (m) => (await last(node.services.dht.provide(CID.createV1(0x55, Digest.decode(bytes(m.multihash)))), 'PEER_RESPONSE')).length,
  find_providers: async (m) => {
    const found = new Set()
    for (const e of await last(node.services.dht.findProviders(CID.createV1(0x55, Digest.decode(bytes(m.multihash)))), 'PROVIDER')) {
      for (const p of e.providers) found.add(p.id.toString())
    }
    return [...found]
  },
  put: async (m) => (await last(node.services.dht.put(bytes(m.key), bytes(m.value)), 'PEER_RESPONSE')).length,
  get: async (m) => {
    const values = await last(node.services.dht.get(bytes(m.key)), 'VALUE')
    return values.length > 0 ? base64(values[0].value) : null
  },
  table: async () => node.services.dht.routingTable.size
}

say({ ready: true, peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const m = JSON.parse(line)
  actions[m.do](m).then((ok) => say({ id: m.id, ok: ok ?? null }), (error) => say({ id: m.id, error: String(error?.stack ?? error) }))
}
await node.stop()
process.exit(0)

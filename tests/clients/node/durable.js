// Durable Streams' own client reads a stream: node durable.js <url> <live>.  Prints what came, and what comes after each offset.
import { DurableStream, stream } from "@durable-streams/client"

const [url, live] = process.argv.slice(2)
const mode = live === "false" ? false : live

const ids = []
const offsets = []
const response = await stream({ url, live: mode })
await new Promise((resolve) =>
  response.subscribeJson(async (batch) => {
    ids.push(...batch.items.map((event) => event.id))
    offsets.push(batch.offset)
    if (batch.streamClosed) resolve()
  }),
)

const resumed = []
for (const offset of offsets) {
  const rest = await stream({ url, offset, live: mode })
  resumed.push([offset, (await rest.json()).map((event) => event.id)])
}
const head = await DurableStream.head({ url })
console.log(JSON.stringify({ ids, resumed, closed: response.streamClosed && head.offset === offsets.at(-1) }))

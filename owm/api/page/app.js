'use strict'
const $ = (id) => document.getElementById(id)
const answer = $('answer'), notice = $('notice'), facts = $('facts'), question = $('question')
const BROKEN = 'The connection broke off: this answer is not complete. Ask again.'
let running = null

function say (text, bad = false) {
  notice.textContent = text
  notice.hidden = !text
  notice.classList.toggle('bad', bad)
}

function showPairs (list, pairs) {
  list.replaceChildren(...pairs.map(([name, value]) => {
    const box = document.createElement('div')
    const term = document.createElement('dt')
    const detail = document.createElement('dd')
    term.textContent = name
    detail.textContent = value
    box.append(term, detail)
    return box
  }))
}

// One server-sent event. A restart means that the worker was lost: what came so far is void.
function take (kind, data) {
  if (kind === 'token') {
    answer.textContent += data.text
  } else if (kind === 'restart') {
    answer.textContent = ''
    say('A worker was lost; another one answers anew.')
  } else if (kind === 'done') {
    answer.textContent = data.answer
    say('')
    facts.hidden = false
    showPairs(facts, [
      ['answered by', data.worker],
      ['model', `${data.sub_models_used.join(', ')} (${data.model_version})`],
      ['first word', data.time_to_first_token_ms === null ? '–' : `${data.time_to_first_token_ms} ms`],
      ['in all', `${data.latency_ms} ms`],
      ['receipt', data.receipt_id.slice(0, 16) + '…']
    ])
  } else if (kind === 'error') {
    say(data.detail, true)
  }
}

// Reads events until the stream ends; only one that ended in `done` or `error` is complete.
async function readEvents (response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let buffer = ''
  let complete = false
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return complete
    buffer += value
    let end
    while ((end = buffer.indexOf('\n\n')) >= 0) {
      const lines = buffer.slice(0, end).split('\n')
      buffer = buffer.slice(end + 2)
      const field = (name) => lines.filter((line) => line.startsWith(name + ': ')).map((line) => line.slice(name.length + 2)).join('\n')
      const kind = field('event')
      complete ||= kind === 'done' || kind === 'error'
      take(kind, JSON.parse(field('data')))
    }
  }
}

async function ask (text) {
  running = new AbortController()
  $('send').disabled = true
  $('stop').hidden = false
  $('result').hidden = false
  facts.hidden = true
  answer.textContent = ''
  answer.classList.add('live')
  say('')
  let begun = false
  try {
    const response = await fetch('/v1/query/stream', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ query: text }),
      signal: running.signal
    })
    begun = response.ok
    if (response.ok) {
      if (!await readEvents(response)) say(BROKEN, true)
    } else if (response.status === 401) {
      say('This page is out of date: load it again.', true)
    } else {
      const problem = await response.json().catch(() => ({})) // a proxy in between may answer something else
      say(problem.detail || `The gateway failed (${response.status}).`, true)
    }
  } catch (error) {
    if (error.name === 'AbortError') say('Stopped.')
    else say(begun ? BROKEN : 'The gateway cannot be reached.', true)
  } finally {
    answer.classList.remove('live')
    $('send').disabled = false
    $('stop').hidden = true
    running = null
  }
}

function cell (text, className = '') {
  const td = document.createElement('td')
  td.textContent = text
  td.className = className
  return td
}

async function refresh () {
  const state = $('state')
  try {
    const [stats, listed] = await Promise.all(['/v1/network/stats', '/v1/network/nodes'].map(async (path) => (await fetch(path)).json()))
    state.className = stats.workers > 0 ? 'state up' : 'state down'
    state.textContent = stats.workers > 0 ? `${stats.network}: ready` : `${stats.network}: no worker yet`
    showPairs($('numbers'), [
      ['workers', stats.workers], ['peers known', stats.peers_known], ['connections', stats.connections],
      ['answered', stats.tasks_completed], ['in work', stats.requests_in_flight]
    ])
    const rows = listed.nodes.map((node) => {
      const row = document.createElement('tr')
      const worker = cell(node.pseudonym)
      const models = document.createElement('span') // where the window is too narrow for their own column
      models.className = 'narrow'
      models.textContent = node.models.join(', ')
      worker.append(models)
      row.append(worker, cell(node.models.join(', ')), cell(node.tier === 't0' ? '–' : node.tier.toUpperCase()),
        cell(`${node.running} / ${node.slots}`), cell(node.latency_ms === null ? '–' : `${node.latency_ms.toFixed(1)} ms`, 'right'))
      return row
    })
    if (rows.length > 0) {
      $('nodes').replaceChildren(...rows)
    } else {
      const row = document.createElement('tr')
      const empty = cell('No worker is known yet.', 'empty')
      empty.colSpan = 5
      row.append(empty)
      $('nodes').replaceChildren(row)
    }
  } catch {
    state.className = 'state down'
    state.textContent = 'The gateway cannot be reached'
  }
}

$('form').addEventListener('submit', (event) => {
  event.preventDefault()
  if (running === null && question.value.trim()) ask(question.value.trim())
})
question.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault()
    $('form').requestSubmit()
  }
})
$('stop').addEventListener('click', () => running?.abort())
$('curl').textContent = `curl ${location.origin}/v1/chat/completions \\
  -H "Authorization: Bearer $OWM_KEY" -H "Content-Type: application/json" \\
  -d '{"messages": [{"role": "user", "content": "Hello"}], "stream": true}'`
refresh()
setInterval(() => { if (!document.hidden) refresh() }, 2000)

// What the views of this package share in the browser: small things of the page, numbers, and a line to the kernel. Joined in front of a view's own script.
const SVG = "http://www.w3.org/2000/svg"
const SHAPES = { circle: "M5 0a5 5 0 1 0 .01 0z", square: "M.6 .6h8.8v8.8H.6z", "triangle-up": "M5 0 10 9.4H0z", diamond: "M5-.6 10.6 5 5 10.6-.6 5z", "triangle-down": "M5 10 10 .6H0z",
  cross: "M3.2 0h3.6v3.2H10v3.6H6.8V10H3.2V6.8H0V3.2h3.2z", "triangle-right": "M10 5 .6 10V0z", x: "M1.2.1 5 3.9 8.8.1 9.9 1.2 6.1 5 9.9 8.8 8.8 9.9 5 6.1 1.2 9.9.1 8.8 3.9 5 .1 1.2z" }

// ---------------------------------------------------------------- small things

function make(tag, cls, parent, text) {
  const e = document.createElement(tag)
  if (cls) e.className = cls
  if (text !== undefined) e.textContent = text
  return parent ? parent.appendChild(e) : e
}

function button(cls, text, parent, go, label) {
  const b = make("button", cls, parent, text)
  b.type = "button"
  if (label) b.setAttribute("aria-label", label)
  b.addEventListener("click", e => { e.stopPropagation(); go(e) })
  return b
}

function put(e, text) { if (e.textContent !== text) e.textContent = text }

function draw(tag, parent, attributes) {
  const e = parent.appendChild(document.createElementNS(SVG, tag))
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v)
  return e
}

function symbol(parent, shape, color) {
  const s = draw("svg", parent, { viewBox: "0 0 10 10", "aria-hidden": "true" })
  draw("path", s, { d: SHAPES[shape] || SHAPES.circle, fill: color })
}

function si(x, digits = 3) {
  if (x === null || x === undefined || !isFinite(x)) return "-"
  x = +x.toPrecision(digits)
  const power = Math.abs(x) < 1000 ? 0 : Math.min(Math.floor(Math.log10(Math.abs(x)) / 3 + 1e-9), 4), v = x / 1000 ** power
  return v.toFixed(power === 0 && x === Math.round(x) ? 0 : Math.max(digits - 1 - Math.floor(Math.log10(Math.abs(v) || 1) + 1e-9), 0)) + ["", "k", "M", "B", "T"][power]
}

function logTicks(lo, hi, n) {         // round values; evenly spaced ones where the axis spans less than a factor of three
  const round = v => +v.toPrecision(6), out = []
  if (hi < 3 * lo) {
    const raw = (hi - lo) / n, p = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].map(m => m * p).find(s => s >= raw)
    for (let i = Math.ceil(lo / step); i <= Math.floor(hi / step); i++) out.push(round(i * step))
    return out
  }
  let ticks = []
  for (const steps of [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
    ticks = []
    for (let p = Math.floor(Math.log10(lo)); p <= Math.ceil(Math.log10(hi)); p++) for (const m of steps) { const v = +`${m}e${p}`; if (v >= lo && v <= hi) ticks.push(v) }
    if (ticks.length <= n) return ticks
  }
  const by = Math.ceil(ticks.length / n)
  return ticks.filter((_, i) => i % by === 0)
}

function within(old, lo, hi) {         // the ends of an axis: they stay while the data fit and do not shrink to a corner
  if (!(lo > 0) || !(hi > 0)) return old
  const a = Math.log(lo), b = Math.log(hi)
  if (old && a >= Math.log(old[0]) && b <= Math.log(old[1]) && b - a > .55 * (Math.log(old[1]) - Math.log(old[0]))) return old
  const pad = Math.max(.08 * (b - a), .02)
  return [Math.exp(a - pad), Math.exp(b + pad)]
}

const finite = v => v !== null && v !== undefined && isFinite(v)

function sci(x, digits = 2) {          // 4.0e20, as `sci_format` writes it
  return finite(x) && x > 0 ? x.toExponential(digits - 1).replace("e+", "e") : "-"
}

function readNumber(text) {            // 1e21, 3.2B, 40M, 1,500 and 1,5 (which is 1.5); NaN for anything else
  const m = /^\s*([\d.,]+)(e[+-]?\d+)?\s*([kMBGT]?)\s*$/i.exec(text)
  if (!m) return NaN
  const digits = /^[1-9]\d{0,2}(,\d{3})+(\.\d*)?$/.test(m[1]) ? m[1].replaceAll(",", "") : m[1].replace(/^(\d*),(\d+)$/, "$1.$2")
  return +(digits + (m[2] || "")) * { "": 1, k: 1e3, m: 1e6, b: 1e9, g: 1e9, t: 1e12 }[m[3].toLowerCase()]
}

function linTicks(lo, hi, n) {
  const raw = (hi - lo) / Math.max(n, 1), p = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 2.5, 5, 10].map(m => m * p).find(s => s >= raw * .999), out = []
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + 1e-9 * step; i++) out.push(+(i * step).toPrecision(8))
  return out
}

function facts(parent, pairs) {        // a small table of names and values; what is null is left out
  const list = make("dl", "", parent)
  for (const [k, v] of pairs) if (v !== null && v !== undefined) { make("dt", "", list, k); make("dd", "", list, v) }
  return list
}

function choice(parent, label, options, go) {   // one of a few: [[value, text, why], ...]; returns a function that shows the one that holds
  const box = make("span", "choice", parent), name = make("span", "tag", box, label), group = make("span", "segments", box), buttons = new Map()
  group.setAttribute("role", "group"); group.setAttribute("aria-label", label); name.setAttribute("aria-hidden", "true")
  for (const [value, text, why] of options) { const b = button("", text, group, () => go(value)); if (why) b.title = why; buttons.set(value, b) }
  return value => { for (const [v, b] of buttons) b.setAttribute("aria-pressed", v === value) }
}

// ---------------------------------------------------------------- a view in its page

function rootOf(el, cls, id) {         // the view's own element; what a reader without a kernel gets in its place is hidden
  const root = make("div", `snb ${cls}`, el)
  root.dataset.lmSuppressShortcuts = "true"          // keys pressed in here are not commands of the notebook
  root.addEventListener("keydown", e => { if (e.target !== root) e.stopPropagation() })
  if (id) make("style", "", root).textContent = `.snb-still[data-view="${id}"]{display:none}`
  return root
}

const ANSWER_MS = 3000                 // a kernel that can hear answers within this

function lineTo(model, changed, ask = true) {   // asks the kernel whether it hears before it is told anything: nothing is done an hour later. `changed()` when that, or the kernel, has
  const pending = new Map(), line = { mute: false, gone: false, heard: 0 }
  let asked = 0
  const hears = yes => { if (line.mute === yes) { line.mute = !yes; changed() } }
  line.ping = () => {
    const id = ++asked
    return new Promise(answer => {
      pending.set(id, answer)
      model.send({ ping: id })
      setTimeout(() => { if (pending.has(id)) { pending.delete(id); if (line.heard < id) hears(false); answer(false) } }, ANSWER_MS)
    })
  }
  line.press = async (what, more) => { const hears = await line.ping(); if (hears) model.send({ press: what, ...more }); return hears }   // was it sent?
  const onMessage = m => {
    if (!("pong" in m)) return
    const answer = pending.get(m.pong)
    pending.delete(m.pong)
    line.heard = Math.max(line.heard, m.pong)
    if (!line.mute || asked - m.pong < 2) hears(true)    // late answers come in a heap when a cell has ended
    if (answer) answer(true)
  }
  const onGone = () => { line.gone = true; changed() }
  model.on("msg:custom", onMessage); model.on("comm_live_update", onGone)
  const again = setInterval(() => { if (line.mute && !line.gone) line.ping() }, 2000)
  if (ask) setTimeout(() => { line.ping(); setTimeout(() => { if (!line.heard) line.ping() }, 1200) })   // the first may be sent before its subshell is there
  line.close = () => { clearInterval(again); model.off("msg:custom", onMessage); model.off("comm_live_update", onGone) }
  return line
}
const BUSY = "The kernel is busy with a cell and hears no buttons meanwhile. Interrupt the kernel (Ctrl-C, or ■ above) to go on here."

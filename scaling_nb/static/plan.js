// The browser half of PlanView: controls beside the grid of runs, what it costs, how wide the answer will be, what is left out, the call as code. `parts.js` and `plot.js` come before.
// The kernel plans. The page sends what was moved, and not again before it has its answer, so that a drag is followed and never queued.
const SILENT_MS = 3000                 // without an answer for so long, the page asks whether anybody hears
const MONEY = ["spend", "spend_flops", "hours", "dollars"], UNITS = { spend: "share", spend_flops: "FLOPs", hours: "hours", dollars: "$" }
const GROUPS = [["", ["target", "money"]], ["Grid", ["n_budgets", "low", "top", "n_sizes", "smallest", "largest", "replicates"]],
  ["Limits", ["least_tokens_per_param", "most_tokens_per_param", "steps", "warmup_share", "batch", "epochs", "memory", "seconds", "smallest_size", "largest_size"]]]
const BYTES = { kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 }
const TIMES = { s: 1, sec: 1, second: 1, m: 60, min: 60, minute: 60, h: 3600, hour: 3600, d: 86400, day: 86400 }
const READS = {                        // what a number is -> units that may follow it, each with or without an s
  share: { "%": .01 }, FLOPs: { flop: 1 }, dollars: { $: 1, usd: 1 }, seconds: TIMES, hours: Object.fromEntries(Object.entries(TIMES).map(([k, v]) => [k, v / 3600])),
  bytes: { byte: 1, kb: 1e3, mb: 1e6, gb: 1e9, tb: 1e12, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30, tib: 2 ** 40 } }
const SUCH = { share: "0.1 %", seconds: "90 s, 5 min, 2 h", hours: "0.5, 20 min, 2 days", bytes: "80 GB", dollars: "$250" }

// ---------------------------------------------------------------- a control's number: where its slider stands, how it is written and read

function placeOf(c, v) {               // 0 to 1; a limit that is none stands at its open end
  const [lo, hi] = c.ends
  if (v === null || v === undefined) return c.open === "low" ? 0 : 1
  return c.scale === "log" ? Math.log(Math.max(v, lo * 1e-9) / lo) / Math.log(hi / lo) : (v - lo) / (hi - lo)
}
function valueAt(c, s) {
  const [lo, hi] = c.ends
  if (c.open === "low" && s <= 0 || c.open === "high" && s >= 1) return null
  const v = c.scale === "log" ? lo * (hi / lo) ** s : lo + (hi - lo) * s
  return c.whole ? Math.round(v) : +v.toPrecision(3)
}
function write(c, v) {
  if (v === null) return "none"
  const round = v => `${+v.toPrecision(3)}`
  if (c.what === "FLOPs") return sci(v, 3)
  if (c.what === "share") return `${round(100 * v)} %`
  if (c.what === "dollars") return `$${v >= 100 ? Math.round(v).toLocaleString("en") : v.toFixed(2)}`
  if (c.what === "seconds") { const [u, n] = v >= 129600 ? ["days", 86400] : v >= 5400 ? ["h", 3600] : v >= 90 ? ["min", 60] : ["s", 1]; return `${round(v / n)} ${u}` }
  if (c.what === "bytes") { const [u, n] = Object.entries(BYTES).reverse().find(([, n]) => v >= n) || ["bytes", 1]; return `${round(v / n)} ${u}` }
  if (c.name === "smallest") return `1/${round(1 / v)}`
  return c.whole ? v.toLocaleString("en") : round(v)
}
function read(c, text) {               // the number; null for no limit; NaN for what is none. A share without a unit is in percent, as it is written
  text = text.trim()
  if (c.open && /^(none|no|no limit|-|)$/i.test(text)) return null
  if (c.what === "dollars") text = text.replace(/^\$/, "")
  const part = /^1\s*\/\s*(.+)$/.exec(text), [, number, word = ""] = /^(.*?)\s*([^\d\s.,]+)?$/.exec(text), small = word.toLowerCase()
  const units = { [c.what.toLowerCase()]: 1, ...READS[c.what] }, unit = units[word] ?? (word.length > 1 ? units[small] ?? units[small.replace(/s$/, "")] : undefined)
  const time = READS[c.what]?.day      // "5 M" is no five million seconds
  const v = part ? 1 / readNumber(part[1]) : unit ? unit * readNumber(number) : time && word ? NaN : readNumber(text) * (c.what === "share" ? .01 : 1)
  return c.whole ? Math.round(v) : +v.toPrecision(12)
}

// ---------------------------------------------------------------- the view

function render({ model, el }) {
  const get = name => model.get(name), root = rootOf(el, "snb-plan", get("status").view), rows = {}
  let money = MONEY.find(k => get("controls").find(c => c.name === k)?.moved) || "spend", axis = "D", dead = false, held = null, copied = null, wrong = ""
  let wishes = {}, resets = null, wish = 0, flying = 0, sent = 0, dismissed = get("said")?.n || 0

  // ---- head
  const head = make("div", "head", root), count = make("span", "count", head), cost = make("span", "soft cost", head), acts = make("span", "acts", head)
  const resetAll = button("push", "Reset", acts, () => { for (const name in rows) rows[name].field.removeAttribute("aria-invalid"); ask({}, []) }, "put every control back"), show = button("push", "Code", acts, () => openCode(code.hidden))
  show.setAttribute("aria-expanded", false)
  const code = make("div", "code", root), pre = make("pre", "", code), copy = button("push small", "Copy", code, async () => {
    try { await navigator.clipboard.writeText(pre.textContent); put(copy, "Copied") } catch { getSelection().selectAllChildren(pre); put(copy, "Selected: Ctrl-C") }
    clearTimeout(copied); copied = setTimeout(() => put(copy, "Copy"), 2000)
  })
  code.hidden = true
  function openCode(yes) { code.hidden = !yes; show.setAttribute("aria-expanded", yes) }
  const note = make("div", "note", root)
  note.setAttribute("role", "status"); note.hidden = true

  // ---- asking the kernel
  const line = lineTo(model, () => { paintNote(); flush() })
  function ask(changes, reset) {
    wrong = ""; wishes = reset && !reset.length ? {} : { ...wishes, ...changes }
    if (reset) resets = reset.length ? [...resets || [], ...reset] : []
    flush()
  }
  function flush() {
    if (flying || line.mute || line.gone || dead || !resets && !Object.keys(wishes).length) return
    flying = ++wish; sent = performance.now()
    model.send({ press: "move", args: { n: wish, reset: resets, ...wishes } })
    wishes = {}; resets = null
  }
  const watch = setInterval(() => { if (flying && performance.now() - sent > SILENT_MS) { sent = performance.now(); line.ping().then(yes => { if (!yes) flying = 0 }) } }, 500)
  function answered() {
    if (flying && get("status").answered >= flying) { flying = 0; root.dataset.ms = Math.round(performance.now() - sent); flush() }
  }

  // ---- controls
  const body = make("div", "body", root), side = make("div", "side", body), main = make("div", "main", body)
  for (const [title, names] of GROUPS) {
    const group = title === "Limits" ? make("details", "group", side) : make("div", "group", side)
    if (title) { const t = make(title === "Limits" ? "summary" : "h4", "", group, title); if (title === "Limits") { group.count = make("span", "soft", t); side.limits = group } }
    group.setAttribute("role", "group"); group.setAttribute("aria-label", title || "What it is for")
    for (const name of names) addRow(group, name)
  }
  const named = name => get("controls").find(c => c.name === (name === "money" ? money : name))

  function addRow(parent, name) {
    const r = rows[name] = { name, box: make("div", "control", parent) }, top = make("div", "line", r.box)
    r.label = make("label", "", top)
    if (name === "money") {
      r.unit = make("select", "unit", top); r.unit.setAttribute("aria-label", "unit of what may be spent")
      r.unit.addEventListener("change", () => { money = r.unit.value; paintRow(r) })
    }
    r.back = button("back", "↺", top, () => { const c = named(name); ask({}, [c.name]); r.field.focus() })
    r.field = make("input", "field", top); r.field.spellcheck = false; r.field.autocomplete = "off"; r.field.id = `p${get("status").view}${name}`; r.label.htmlFor = r.field.id
    r.slider = make("input", "slide", r.box); r.slider.type = "range"; r.slider.min = 0; r.slider.max = 1
    r.says = make("div", "says", r.box)
    let last = null
    r.slider.addEventListener("pointerdown", () => { held = name })
    for (const end of ["pointerup", "pointercancel", "change"]) r.slider.addEventListener(end, () => { held = null; schedule() })
    r.slider.addEventListener("focus", () => { last = null })
    r.slider.addEventListener("input", () => {
      const c = named(name), s = +r.slider.value, old = last ?? c.value
      let v = valueAt(c, s)
      if (c.whole && v !== null && v === old && s !== placeOf(c, old)) v = Math.max(c.ends[0], old + (s > placeOf(c, old) ? 1 : -1))   // a step of the keys is never none
      last = v; fill(r, s); r.field.value = write(c, v); r.slider.setAttribute("aria-valuetext", r.field.value); r.field.removeAttribute("aria-invalid"); ask({ [c.name]: v })
    })
    const typed = () => {
      const c = named(name), v = read(c, r.field.value), bad = Number.isNaN(v)
      bad ? r.field.setAttribute("aria-invalid", true) : r.field.removeAttribute("aria-invalid")
      if (bad) { wrong = `“${r.field.value}” is no number for ${c.label.toLowerCase()}: write ${write(c, c.value ?? c.ends[1])}, or ${SUCH[c.what] || "1e21, 12M, 3.2B"}${c.open ? ", or none" : ""}.`; paintNote() }
      else if (r.field.value !== c.text && r.field.value !== write(c, c.value)) ask({ [c.name]: v })
    }
    r.field.addEventListener("change", typed)
    r.field.addEventListener("focus", () => r.field.select())
    r.field.addEventListener("keydown", e => { if (e.key === "Escape") { r.field.removeAttribute("aria-invalid"); wrong = ""; paintRow(r, true); paintNote() } })
  }
  function fill(r, s) { r.slider.style.setProperty("--at", `${(100 * Math.max(0, Math.min(1, s))).toFixed(1)}%`) }
  function paintRow(r, force) {
    const c = named(r.name)
    r.box.hidden = !c
    if (!c) return
    put(r.label, c.label); r.label.title = r.slider.title = c.why
    if (r.unit) {
      const there = MONEY.filter(k => get("controls").some(c => c.name === k))
      if (r.unit.options.length !== there.length) { r.unit.textContent = ""; for (const k of there) { const o = make("option", "", r.unit, UNITS[k]); o.value = k } }
      r.unit.value = money
    }
    r.box.classList.toggle("moved", c.moved); r.box.classList.toggle("decided", !!c.decided)
    r.back.hidden = !c.moved; r.back.setAttribute("aria-label", `put ${c.label.toLowerCase()} back`); r.back.title = "put back"
    r.slider.step = c.scale === "int" ? 1 / (c.ends[1] - c.ends[0]) : .005
    const quiet = c.decided === "recommended"           // seven times the same word: said once, in the heading
    put(r.says, quiet ? "" : c.decided || ""); r.says.hidden = quiet || !c.decided; r.field.title = c.decided || ""
    if (held === r.name || flying || Object.keys(wishes).includes(c.name)) return          // the hand is ahead of the kernel
    if (document.activeElement !== r.field || force) if (!r.field.hasAttribute("aria-invalid") || force) r.field.value = c.text
    const s = placeOf(c, c.value)
    if (Math.abs(s - r.slider.value) > .004 || document.activeElement !== r.slider) r.slider.value = s
    fill(r, s)
    r.slider.setAttribute("aria-label", `${c.label}, ${c.why}`); r.slider.setAttribute("aria-valuetext", `${c.text}${c.decided ? ", " + c.decided : ""}`)
  }

  // ---- the grid
  const figure = make("figure", "", main), caption = make("figcaption", "", figure), name = make("span", "", caption, "Runs of the sweep"), timing = make("span", "soft", caption)
  const pick = choice(caption, "against", [["D", "tokens"], ["C", "FLOPs"]], v => { axis = v; pick(v); plot.axes.y.title = TITLES[v]; plot.axes.y.format = v === "D" ? "si" : "sci"; plot.ends.y = null; plot.frame = null; paintGrid() })
  const TITLES = { D: "D, tokens", C: "C, FLOPs a run" }
  const plot = new Plot(figure, { x: { title: "N, parameters", log: true, format: "si" }, y: { title: TITLES.D, log: true, format: "si" }, height: 400, on: { hover: g => plot.light(g), keys: true } })
  pick("D")
  const legend = make("div", "row legend", main)

  const costOf = (law, N) => {         // FLOPs a token at N: linear in the logarithms between the sizes that were measured
    if (law.length < 2) return law.length ? law[0][1] * N / law[0][0] : 6 * N
    let i = law.findIndex(p => p[0] >= N)
    i = i < 0 ? law.length - 2 : Math.max(0, i - 1)
    const [a, b] = [law[i], law[i + 1]]
    return b[0] === a[0] ? a[1] : a[1] * (b[1] / a[1]) ** (Math.log(N / a[0]) / Math.log(b[0] / a[0]))
  }
  function paintGrid() {
    const { budgets, cells, law, prior, between } = get("grid"), size = get("status").size
    const points = cells.map(([b, s, N, D, C, state, runs, why]) => {
      const k = budgets[b], out = state === 2
      return { id: `${b}/${s}/${state}`, x: N, y: axis === "D" ? D : C, group: b, color: out ? "var(--snb-soft)" : k.color, shape: out ? "x" : state === 1 ? "diamond" : k.shape, size: out ? 9 : state === 1 ? 14 : 10,
        cls: out ? "out" : state === 1 ? "open" : runs > 1 ? "twice" : "", head: `${size} ${s.toLocaleString("en")}${out ? ": left out" : state === 1 ? ": held out from the fit" : ""}`,
        tip: [["budget", k.name], ["N", si(N)], ["D", si(D)], ["D/N", `${+(D / N).toPrecision(3)}`], ["FLOPs", sci(C, 3)], ["seeds", runs > 1 ? runs : null]], hint: why || "",
        says: `${size} ${s}, budget ${k.name} FLOPs, ${si(N)} parameters, ${si(D)} tokens${out ? ", left out: " + why : state === 1 ? ", held out from the fit" : runs > 1 ? `, ${runs} seeds` : ""}` }
    }).filter(p => p.x > 0 && p.y > 0)
    const lines = budgets.map((k, b) => ({ k, b, row: cells.filter(c => c[0] === b && c[5] === 0) })).filter(l => l.row.length > 1)
      .map(({ k, b, row }) => ({ x: row.map(c => c[2]), y: row.map(c => axis === "D" ? c[3] : c[4]), color: k.color, group: b, cls: "rowline" }))
    const kept = cells.filter(c => c[5] === 0).length, lost = cells.filter(c => c[5] === 2).length
    plot.update({ points, lines, texts: [], label: `${kept} runs on ${lines.length} budgets, parameters against ${axis === "D" ? "tokens" : "FLOPs"}; ${lost} left out. Arrow keys go from run to run.` })
    if (!plot.w) return
    const [x0, x1] = plot.ends.x, [y0, y1] = plot.ends.y, texts = []
    for (const [r, cls, says] of [[prior, "optimum", `${+prior.toPrecision(3)} tokens a parameter: expected optimum`], [between[0], "guide", `D/N ${between[0]}`], [between[1], "guide", `D/N ${between[1]}`]]) {
      if (!r) continue
      const x = Array.from({ length: 41 }, (_, i) => x0 * (x1 / x0) ** (i / 40)), y = x.map(N => axis === "D" ? r * N : r * N * costOf(law, N)), inside = x.map((_, i) => i).filter(i => y[i] >= y0 && y[i] <= y1)
      lines.push({ x, y, cls, free: true })
      if (!inside.length) continue
      const low = cls === "guide", i = inside[low ? 0 : inside.length - 1], px = plot.at("x", x[i]), py = plot.at("y", y[i]), top = !low && py < plot.pad.top + 24    // limits are named at their lower end, the optimum at its upper one
      texts.push({ x: x[i], y: y[i], dx: low ? 7 : -10, dy: low ? Math.min(-4, plot.pad.top + plot.h - 5 - py) : top ? plot.pad.top + 12 - py : -8, text: says, anchor: low ? "start" : "end", cls: "zone" })
    }
    plot.update({ lines, texts })
    paintLegend(budgets, cells)
  }
  function paintLegend(budgets, cells) {
    const held = cells.some(c => c[5] === 1), lost = cells.filter(c => c[5] === 2).length, key = JSON.stringify([budgets, held, lost])
    if (legend.dataset.key === key) return
    legend.dataset.key = key; legend.textContent = ""
    make("span", "tag", legend, "budget, FLOPs")
    budgets.forEach((k, b) => {
      const only = !cells.some(c => c[0] === b && c[5] === 0)
      if (only && !cells.some(c => c[0] === b && c[5] === 1)) return
      const item = make("span", "item", legend)
      only ? symbol(item, "diamond", k.color) : symbol(item, k.shape, k.color)
      if (only) item.querySelector("path").setAttribute("style", `fill:none;stroke:${k.color};stroke-width:2`)
      make("span", "", item, k.name + (only ? ", held out" : ""))
      item.addEventListener("pointerenter", () => plot.light(b)); item.addEventListener("pointerleave", () => plot.light(null))
    })
    if (lost) { const item = make("span", "item soft", legend); symbol(item, "x", "currentColor"); make("span", "", item, `left out: ${lost}`) }
  }

  // ---- what it comes to
  const facts3 = make("div", "three", main), panel = name => { const p = make("section", name, facts3); p.heading = make("h4", "", p); p.inside = make("div", "", p); return p }
  const money3 = panel("cost"), width3 = panel("width"), out3 = panel("lost")
  put(money3.heading, "Cost"); put(out3.heading, "Left out")
  const notes = make("details", "notes", main), summary = make("summary", "", notes), list = make("ul", "", notes)

  function paintFacts() {
    const f = get("facts"), w = get("width"), d = get("dropped"), n = get("notes"), s = get("status")
    put(count, `${f.runs} run${f.runs === 1 ? "" : "s"}, ${f.flops} FLOPs`)
    put(cost, [f.hours, f.dollars].filter(Boolean).join(" · "))
    money3.inside.textContent = ""
    facts(money3.inside, [["runs", `${f.flops} FLOPs`], ["may spend", f.allowed], ["kept for later", f.reserve], ["time", f.hours], ["longest run", f.longest], ["largest run", `${f.largest} FLOPs`], ["money", f.dollars], ["saved by trunks", f.shared]])
    if (f.hardware) make("div", "soft small", money3.inside, `on ${f.hardware}`)

    put(width3.heading, w.target ? `Answer at ${w.target} FLOPs` : "Width of the answer")
    const key = JSON.stringify(w)
    if (width3.dataset.key !== key) {
      width3.dataset.key = key; width3.inside.textContent = ""
      if (w.why) make("div", "", width3.inside, `No answer will come out of this: ${w.why}`)
      else if (!w.now) make("div", "soft", width3.inside, "…")
      else {
        const t = make("table", "", width3.inside), tr = make("tr", "", make("thead", "", t)), b = make("tbody", "", t)
        for (const h of ["", "N*", "D*", "loss"]) { const th = make("th", "", tr, h); th.scope = "col" }
        for (const [name, row, cls] of [["these runs", w.now, "now"], ["twice the budgets", w.doubled], ["a second seed", w.repeated]]) if (row) { const tr = make("tr", cls || "", b), th = make("th", "", tr, name); th.scope = "row"; for (const v of row) make("td", "", tr, v) }
        make("div", "soft small", width3.inside, `${w.level} interval, ${w.far}x beyond the grid${w.rough ? "; that wide, it is rough" : ""}.${w.guess ? ` A guess: ${w.guess}.` : ""}`)
      }
    }
    out3.inside.textContent = ""
    if (!d.length) make("div", "soft", out3.inside, "nothing: every cell can be run")
    else { const l = make("ul", "", out3.inside); for (const g of d) { const li = make("li", "", l); make("b", "", li, `${g.n}`); const t = make("span", "", li, ` ${g.what}`); make("div", "soft small", li, g.example); t.title = g.example } }
    notes.hidden = !n.length
    put(summary, `${n.length} note${n.length === 1 ? "" : "s"} on this plan`)
    if (list.dataset.key !== JSON.stringify(n)) { list.dataset.key = JSON.stringify(n); list.textContent = ""; for (const x of n) make("li", "", list, x) }
    const moved = get("controls").filter(c => c.moved), limits = get("controls").filter(c => GROUPS[2][1].includes(c.name) && c.value !== null)
    resetAll.disabled = !moved.length
    put(side.limits.count, `${limits.length} of ${GROUPS[2][1].length} hold${limits.some(c => c.decided === "recommended") ? ", as recommended" : ""}`)
    root.classList.toggle("old", !!s.error); width3.classList.toggle("stale", s.stale)
    put(timing, s.busy || "")
  }

  function paintNote() {
    const s = get("status"), said = get("said") || {}
    const [kind, text] = line.gone ? ["bad", "The kernel that this view belonged to is gone. This is its last word; run the cell again to plan on."] : line.mute ? ["", BUSY] : wrong ? ["bad", wrong]
      : s.error ? ["bad", `${s.error} Below is the last plan that could be made.`] : said.n && said.n !== dismissed && !said.ok ? ["bad", said.text] : s.busy ? ["", `${s.busy} …`] : ["", ""]
    put(note, text); note.hidden = !text; note.className = "note " + kind
    root.classList.toggle("gone", line.gone)
  }

  // ---- one painting a frame, however much arrives
  let due = false
  function schedule() { if (!due && !dead) { due = true; requestAnimationFrame(paint) } }
  function paint() {
    due = false
    if (dead) return
    try { for (const name in rows) paintRow(rows[name]); paintFacts(); paintGrid(); paintNote(); put(pre, get("call")) }
    catch (e) { note.hidden = false; note.className = "note bad"; note.textContent = `the view met an error: ${e.message}`; console.error(e) }
    root.dataset.answered = get("status").answered; root.dataset.runs = get("facts").runs; root.dataset.stale = get("status").stale
  }
  function onStatus() { answered(); schedule() }
  const events = { "change:status": onStatus, ...Object.fromEntries(["said", "call", "grid", "controls", "facts", "width", "dropped", "notes"].map(k => [`change:${k}`, schedule])) }
  for (const name in events) model.on(name, events[name])
  const sized = new ResizeObserver(schedule)
  sized.observe(figure)
  paint()
  return () => { dead = true; clearInterval(watch); sized.disconnect(); line.close(); plot.close(); for (const name in events) model.off(name, events[name]) }
}
export default { render }

// The browser half of FitView: a budget to drag, numbers that follow, three linked charts, choices, doubts, the call as code. `parts.js` and `plot.js` come before.
// While a hand moves, the page reads the path of answers that it has; when the hand rests, the kernel is asked for the exact one.
const MARK = { grave: "▲▲", serious: "▲", caution: "△", minor: "○", good: "✓" }
const PENDING = "…"

function render({ model, el }) {
  const get = name => model.get(name), fixed = get("fixed"), root = rootOf(el, "snb-fit", fixed.view)
  let C = get("state").C, held = false, lit = null, locked = null, quantity = "N", copied = null, dead = false, dismissed = get("said")?.n || 0, asked = null

  // ---- the question
  const top = make("div", "top", root), ask = make("div", "ask", top), label = make("label", "", ask, "Compute to spend")
  const field = make("input", "field c", ask), unit = make("span", "soft", ask, "FLOPs"), reach = make("span", "soft reach-says", ask)
  field.id = "c" + fixed.view; label.htmlFor = field.id; field.spellcheck = false; field.autocomplete = "off"; field.setAttribute("aria-describedby", "r" + fixed.view); reach.id = "r" + fixed.view
  const rail = make("div", "rail", ask), slider = make("input", "slide", rail), shade = make("i", "shade", rail)
  slider.type = "range"; slider.step = .01; slider.setAttribute("aria-label", "Compute to spend, FLOPs")
  const badge = make("div", "badge", top), letter = make("b", "letter", badge), because = make("span", "because", badge)

  slider.addEventListener("input", () => { held = true; move(10 ** +slider.value, false) })
  slider.addEventListener("change", () => { held = false; move(10 ** +slider.value, true) })
  const typed = () => {
    const v = readNumber(field.value)
    field.setAttribute("aria-invalid", !(v > 0))
    if (v > 0) { if (Math.abs(v / C - 1) > 1e-9) move(v, true, true); field.value = exact(v) }
  }
  field.addEventListener("change", typed)
  field.addEventListener("keydown", e => { if (e.key === "Enter") typed() })
  const exact = v => (+v.toPrecision(4)).toExponential().replace("e+", "e")

  let rest = null
  function move(v, done, exactly = false) {   // the budget: the page answers now, the kernel when the hand rests
    const mine = asked = C = +v.toPrecision(exactly ? 12 : 3)    // from now on, answers to earlier questions do not move it
    paintC()
    clearTimeout(rest)
    rest = setTimeout(async () => { if (!await press("set", { C: mine }) && asked === mine) asked = null }, done ? 0 : 300)
  }

  // ---- the numbers
  const numbers = make("div", "numbers", root), tiles = {}
  for (const [k, name, what] of [["N", "N*", "parameters"], ["D", "D*", "tokens"], ["ratio", "D/N", "tokens per parameter"], ["loss", "Loss", "nats per token"], ["slack", "Slack", "sizes that lose under 1 %"]]) {
    const t = make("div", "tile " + k, numbers), head = make("div", "name", t)
    make("b", "", head, name); make("span", "soft", head, what)
    tiles[k] = { big: make("div", "big", t), low: make("div", "between", t), wide: make("div", "between", t) }
  }

  // ---- notes: what failed, what moved
  const note = make("div", "note", root)
  note.setAttribute("role", "status"); note.hidden = true

  // ---- choices
  const bar = make("div", "row choices", root), set = kw => press("set", kw)
  const pickEstimator = choice(bar, "answer by", [["surface", "surface"], ["isoflop", "IsoFLOP line"]], v => set({ estimator: v }))
  const pickLaw = choice(bar, "form", fixed.laws, v => set({ law: v }))
  const pickLoss = choice(bar, "loss", fixed.losses, v => { const [loss, delta] = v.split(":"); set({ loss, delta: delta === "auto" ? delta : +delta }) })
  const pickWindow = choice(bar, "budgets", fixed.windows.map(k => [k, k ? `−${k}` : "all", k ? `without the ${k} smallest` : "all budgets"]), v => set({ skip: v }))

  // ---- charts
  const charts = make("div", "charts", root)
  const figure = (cls, title) => {
    const f = make("figure", cls, charts), caption = make("figcaption", "", f)
    return { f, caption, title: make("span", "", caption, title), says: make("span", "soft", caption) }
  }
  const one = figure("profile", "Loss by size"), two = figure("optimum", "Best size by budget"), three = figure("loss", "Lowest loss by budget")
  const hover = group => { if (locked === null) light(group) }
  const rule = (v, done) => { held = !done; move(v, done) }
  const perGroup = { hover: g => hover(g) }
  const profile = new Plot(one.f, { x: { title: "N, parameters", log: true, format: "si" }, y: { title: "held-out loss, nats/token" }, on: { ...perGroup, pick: id => id[0] === "r" ? press("toggle", { row: +id.slice(1) }) : lock(+id.slice(1)) } })
  const optimum = new Plot(two.f, { x: { title: "C, FLOPs", log: true, format: "sci" }, y: { title: "N*, parameters", log: true, format: "si" }, on: { ...perGroup, pick: id => lock(+id.slice(1)), rule } })
  const losses = new Plot(three.f, { x: { title: "C, FLOPs", log: true, format: "sci" }, y: { title: "held-out loss, nats/token" }, on: { ...perGroup, pick: id => press("toggle", { row: +id.slice(1) }), rule } })
  const which = choice(two.caption, "", [["N", "N*"], ["D", "D*"]], v => { quantity = v; which(v); optimum.axes.y.title = v === "N" ? "N*, parameters" : "D*, tokens"; put(two.title, v === "N" ? "Best size by budget" : "Best tokens by budget"); optimum.ends.y = null; paintPaths(); paintC() })
  which("N")

  const legend = make("div", "row legend", root), chips = fixed.budgets.map((b, k) => {
    if (!k) { legend.setAttribute("role", "group"); legend.setAttribute("aria-label", "show one budget"); make("span", "tag", legend, "budget, FLOPs") }
    const chip = button("chip", "", legend, () => lock(k))
    symbol(chip, b.shape, b.color); make("span", "", chip, b.name)
    chip.addEventListener("pointerenter", () => hover(k)); chip.addEventListener("pointerleave", () => hover(null))
    return chip
  })
  function lock(k) { locked = locked === k ? null : k; chips.forEach((c, i) => c.setAttribute("aria-pressed", i === locked)); light(locked) }
  function light(group) { if (lit === group) return; lit = group; for (const p of [profile, optimum, losses]) p.light(group) }
  chips.forEach(c => c.setAttribute("aria-pressed", false))

  // ---- what was done, and what to do
  const done = make("div", "done", root), moved = make("span", "moved", done), acts = make("span", "acts", done)
  moved.setAttribute("role", "status")
  const undo = button("push small", "Undo", acts, () => press("undo")), reset = button("push small", "Reset", acts, () => press("reset")), show = button("push small", "Code", acts, () => { code.hidden = !code.hidden; show.setAttribute("aria-expanded", !code.hidden) })
  show.setAttribute("aria-expanded", false)
  const code = make("div", "code", root), pre = make("pre", "", code), copy = button("push small", "Copy", code, async () => {
    try { await navigator.clipboard.writeText(pre.textContent); put(copy, "Copied") } catch { getSelection().selectAllChildren(pre); put(copy, "Selected: Ctrl-C") }
    clearTimeout(copied); copied = setTimeout(() => put(copy, "Copy"), 2000)
  })
  code.hidden = true; pre.tabIndex = 0; pre.setAttribute("aria-label", "the calls that give this answer")

  // ---- doubts and checks
  const below = make("div", "below", root), left = make("section", "", below), right = make("section", "", below)
  make("h4", "", left, "What to distrust, worst first")
  const list = make("ul", "doubts", left)
  make("h4", "", right, "What was checked")
  const checks = make("dl", "checks", right)

  // ---- numbers along the path
  function along(v) {                  // what the path says at a budget; null where it does not know
    const p = get("curves").path, n = p?.C.length
    if (!n) return {}
    const x = Math.log(v)
    let i = 1
    while (i < n - 1 && p.C[i] < v) i++
    const a = Math.log(p.C[i - 1]), s = (x - a) / (Math.log(p.C[i]) - a), out = {}
    for (const k in p) { const u = p[k][i - 1], w = p[k][i]; out[k] = !finite(u) || !finite(w) ? null : k.startsWith("loss") ? u + s * (w - u) : Math.exp(Math.log(u) + s * (Math.log(w) - Math.log(u))) }
    return out
  }
  const pair = (o, k) => finite(o[k + "_low"]) && finite(o[k + "_high"]) ? [o[k + "_low"], o[k + "_high"]] : null
  function at(v) {                     // exact where the kernel has answered this very budget
    const a = get("answer"), o = along(v)
    if (a.C && Math.abs(a.C / v - 1) < 1e-6) return { N: a.N, D: a.D, loss: a.loss, Ni: a.N_interval, No: a.N_outer, Di: a.D_interval, Do: a.D_outer, li: a.loss_interval, lo: a.loss_outer, slack: a.slack, exact: true }
    return { N: o.N, D: o.D, loss: o.loss, Ni: pair(o, "N"), No: pair(o, "N_outer"), Di: pair(o, "D"), Do: pair(o, "D_outer"), li: pair(o, "loss"), lo: pair(o, "loss_outer"), slack: pair(o, "slack"), exact: false }
  }

  function paintC() {                  // all that follows the slider
    const c = get("curves"), v = at(C), s = get("state"), a = get("answer"), far = C / c.top, short = c.low / C, L = Math.round(100 * fixed.level)
    if (document.activeElement !== field) field.value = exact(C)
    slider.value = Math.log10(C); slider.setAttribute("aria-valuetext", `${exact(C)} FLOPs: N* ${si(v.N)}, D* ${si(v.D)}`)
    const times = v => { const w = +v.toPrecision(v < 10 ? 2 : 3); return (w < 1e4 ? w : si(v)) + "×" }
    put(reach, !c.top ? "" : far > 1.02 ? `${times(far)} the largest budget measured` : short > 1.02 ? `${times(short)} below the smallest budget measured` : "within the budgets measured")
    const none = s.busy && !c.bands ? PENDING : "no interval", between = (i, f) => i ? `${L} %: ${f(i[0])} to ${f(i[1])}` : none, fix = x => x.toFixed(3)
    put(tiles.N.big, si(v.N)); put(tiles.N.low, between(v.Ni, si)); put(tiles.D.big, si(v.D)); put(tiles.D.low, between(v.Di, si))
    put(tiles.ratio.big, finite(v.N) ? si(v.D / v.N) : "-"); put(tiles.ratio.low, v.Ni ? `${L} %: ${si(v.Di[0] / v.Ni[1])} to ${si(v.Di[1] / v.Ni[0])}` : "")
    const priced = c.path?.loss?.some(finite)      // a line of two budgets knows no loss at all
    put(tiles.loss.big, finite(v.loss) ? fix(v.loss) : priced ? "withheld" : "-"); put(tiles.loss.low, finite(v.loss) ? between(v.li, fix) : !priced ? s.busy ? PENDING : "not known" : far > 100 ? "too far to promise" : s.busy ? PENDING : "not known")
    put(tiles.slack.big, v.slack ? `${si(v.slack[0], 2)} – ${si(v.slack[1], 2)}` : "-"); put(tiles.slack.low, v.slack ? "of the compute" : "a line knows no cost")
    for (const [k, o, f] of [["N", v.No, si], ["D", v.Do, si], ["loss", finite(v.loss) ? v.lo : null, fix]]) { put(tiles[k].wide, o ? `outer: ${f(o[0])} to ${f(o[1])}` : ""); tiles[k].wide.title = o ? "if the form of the law is slightly wrong" : "" }
    const r = { x: C, min: c.ends?.[0], max: c.ends?.[2], tab: -1, label: "Compute to spend, FLOPs", text: `${exact(C)} FLOPs` }
    if (c.ends) {
      const q = quantity, y = q === "N" ? v.N : v.D
      optimum.update({ rule: { ...r, name: y ? `${q}* ${si(y)}` : "" } }); losses.update({ rule: { ...r, name: finite(v.loss) ? fix(v.loss) : "" } })
    }
    const fresh = v.exact && !s.stale
    badge.classList.toggle("old", !fresh); below.classList.toggle("old", !fresh || !a.doubts); below.setAttribute("aria-busy", !fresh)
    root.dataset.c = C; root.dataset.exact = fresh
  }

  // ---- charts of a fit
  const budget = k => fixed.budgets[k]
  function runPoint(r, x, size) {
    const s = get("state"), out = s.excluded.includes(r.row), aside = r.k < s.skip, b = budget(r.k)
    return { id: "r" + r.row, x, y: r.l, shape: b.shape, color: b.color, group: r.k, size, cls: (out ? "off" : "") + (aside ? " off aside" : ""), pressed: out, head: r.id,
      says: `${r.id}: N ${si(r.n)}, budget ${b.name} FLOPs, loss ${r.l.toFixed(4)}${out ? ", excluded" : aside ? ", outside the window" : ""}`,
      tip: [["budget", b.name + " FLOPs"], ["N", si(r.n)], ["D", si(r.d)], ["D/N", si(r.d / r.n)], ["C", sci(r.c, 3)], ["loss", r.l.toFixed(4)]], hint: aside ? "outside the window" : out ? "excluded; click to take it in" : "click to leave it out" }
  }
  function paintProfile() {
    const c = get("curves"), lines = [], spans = [], points = fixed.runs.map(r => runPoint(r, r.n, 9))
    for (const p of c.profiles || []) {
      const b = budget(p.k), cls = p.out ? "aside" : ""
      if (p.surface) lines.push({ x: p.x, y: p.surface, color: b.color, group: p.k, cls: "dotted " + cls, free: true })
      if (p.parabola) lines.push({ x: p.x, y: p.parabola, color: b.color, group: p.k, cls: (p.ok ? "" : "dashed ") + cls, free: true })
      if (p.best) {
        spans.push({ x: p.best.low, x2: p.best.high, y: p.best.l, group: p.k, free: true })
        points.push({ id: "m" + p.k, x: p.best.n, y: p.best.l, shape: "diamond", color: "currentColor", group: p.k, size: 14, cls: "open", under: true, head: `minimum of ${b.name} FLOPs`, says: `minimum of budget ${b.name}: N ${si(p.best.n)}, loss ${p.best.l.toFixed(4)}`,
          tip: [["N", si(p.best.n)], ["90 %", `${si(p.best.low)} to ${si(p.best.high)}`], ["D", si(p.best.d)], ["loss", p.best.l.toFixed(4)]] })
      }
    }
    const good = (c.profiles || []).filter(p => p.ok).length, grid = fixed.budgets.filter(b => b.grid).length      // runs that were added between budgets make no profile
    put(one.says, `${good} of ${grid} budgets enclose a minimum`)
    profile.update({ lines, spans, points, label: `Held-out loss against N along ${grid} budgets: runs, parabolas, the surface dotted. ${good} budgets enclose a minimum. Arrows move between runs, Enter leaves one out or takes it in.` })
  }
  function split(c, k) {               // the line within the runs, and beyond
    const p = c.path, n = p.C.length, inner = [[], []], outer = [[], []], under = [[], []]
    for (let i = 0; i < n; i++) { if (p.C[i] <= c.low * 1.0001) { under[0].push(p.C[i]); under[1].push(p[k]?.[i]) } if (p.C[i] >= c.low * .9999 && p.C[i] <= c.top * 1.0001) { inner[0].push(p.C[i]); inner[1].push(p[k]?.[i]) } if (p.C[i] >= c.top * .9999) { outer[0].push(p.C[i]); outer[1].push(p[k]?.[i]) } }
    return [{ x: inner[0], y: inner[1], cls: "answer" }, { x: outer[0], y: outer[1], cls: "beyond" }, { x: under[0], y: under[1], cls: "beyond" }]
  }
  const bands = (c, k) => ["_outer", ""].filter(o => c.path[k + o + "_low"]).map(o => ({ x: c.path.C, low: c.path[k + o + "_low"], high: c.path[k + o + "_high"], cls: o ? "outer" : "" }))
  function paintPaths() {
    const c = get("curves")
    if (!c.path) return
    const zones = [{ from: c.top, to: c.ends[2], label: "extrapolated" }, ...(c.low > 1.02 * c.ends[0] ? [{ from: c.ends[0] / 1.4, to: c.low, label: "" }] : [])], q = quantity, small = q.toLowerCase()
    const best = (c.profiles || []).filter(p => p.best).map(p => ({ p, b: budget(p.k) }))
    const tokens = (p, n) => p.best.d * p.best.n / n
    optimum.axes.x.ends = losses.axes.x.ends = [c.ends[0] / 1.4, c.ends[2]]
    optimum.update({ zones, lines: split(c, q), bands: bands(c, q),
      spans: best.map(({ p, b }) => ({ x: p.best.c, y: q === "N" ? p.best.low : tokens(p, p.best.high), y2: q === "N" ? p.best.high : tokens(p, p.best.low), color: b.color, group: p.k })),
      points: best.map(({ p, b }) => ({ id: "m" + p.k, x: p.best.c, y: p.best[small], shape: b.shape, color: b.color, group: p.k, size: 10, head: `${b.name} FLOPs`, says: `budget ${b.name}: N ${si(p.best.n)}, D ${si(p.best.d)}`,
        tip: [["N", si(p.best.n)], ["90 %", `${si(p.best.low)} to ${si(p.best.high)}`], ["D", si(p.best.d)], ["loss", p.best.l.toFixed(4)]] })),
      label: `${q}* against C, with its interval; beyond ${sci(c.top)} FLOPs extrapolated. Points: the minima of the budgets.` })
    losses.update({ zones: [...zones, { from: 100 * c.top, to: c.ends[2], label: "withheld", cls: "deep" }], lines: split(c, "loss"), bands: bands(c, "loss"), points: fixed.runs.map(r => runPoint(r, r.c, 7)), label: `Lowest loss against C, with its interval, and the loss of every run; beyond ${sci(c.top)} FLOPs extrapolated, beyond 100 times that withheld.` })
    slider.min = Math.floor(100 * Math.log10(c.ends[0]) + 1e-6) / 100; slider.max = Math.log10(c.ends[2])
    shade.style.left = `${100 * Math.log(c.top / c.ends[0]) / Math.log(c.ends[2] / c.ends[0])}%`
  }

  // ---- words
  function paintWords() {
    const s = get("state"), a = get("answer"), said = get("said") || {}
    pickEstimator(s.estimator); pickLaw(s.law); pickLoss(s.loss); pickWindow(s.skip)
    for (const b of bar.querySelectorAll("button")) b.disabled = line.mute || line.gone || (s.estimator === "isoflop" && !b.closest(".choice").matches(":first-child,:last-child"))
    const out = s.excluded.length, hint = out ? "" : " Click a run, or press Enter on it, to leave it out."
    put(moved, s.stale && !s.error ? "Fitting …" : s.error && s.moved ? s.moved.split(": no answer")[0] + ": no answer." : s.moved || `${s.used} of ${fixed.runs.length} runs are in${fixed.missing.map(v => "; " + v).join("")}${fixed.held.length ? `; ${fixed.held.length} held out` : ""}.${hint}`)
    undo.disabled = !s.undo || line.mute || line.gone; reset.disabled = s.fresh || line.mute || line.gone
    put(pre, s.code)
    const [kind, text] = line.gone ? ["bad", "The kernel that this view belonged to is gone. This is its last word; run the cell again to go on."] : s.error ? ["bad", `No answer, so the last one stays, in grey. ${s.error}`]
      : said.n && !said.ok && said.n !== dismissed ? ["bad", said.text] : line.mute ? ["", BUSY] : a.no_loss && finite(a.C) && Math.abs(a.C / C - 1) < 1e-6 ? ["", `The loss is withheld. ${a.no_loss}`] : a.no_interval ? ["", `N* has no interval: ${a.no_interval}`] : ["", ""]
    put(note, text); note.hidden = !text; note.className = "note " + kind
    root.classList.toggle("stale", s.stale); root.classList.toggle("gone", line.gone)
    put(letter, a.grade || PENDING); letter.className = "letter " + (a.grade || ""); badge.setAttribute("aria-label", a.grade ? `grade ${a.grade}` : "grade not known yet")
    put(because, a.grade ? a.reason ? `${a.poor}: ${a.reason}` : "every check was made and passed" : "")
    because.title = because.textContent
    if (a.doubts) {
      const key = JSON.stringify(a.doubts)
      if (list.dataset.key !== key) {
        list.dataset.key = key; list.textContent = ""
        for (const [weight, text] of a.doubts) { const li = make("li", weight, list), tag = make("span", "weight", li); make("i", "", tag, MARK[weight]).setAttribute("aria-hidden", "true"); make("span", "", tag, weight); make("span", "", li, text) }
        if (!a.doubts.length) make("li", "soft", list, "Nothing to distrust was found.")
      }
    }
    if (a.criteria) {
      const key = JSON.stringify(a.criteria)
      if (checks.dataset.key !== key) {
        checks.dataset.key = key; checks.textContent = ""
        for (const [name, grade, says] of [...a.criteria].sort((x, y) => x[1] < y[1] ? 1 : x[1] > y[1] ? -1 : 0)) { const dt = make("dt", "", checks); make("b", "mini " + grade, dt, grade); make("span", "", dt, name); make("dd", "", checks, says) }
      }
    }
    root.dataset.excluded = out; root.dataset.busy = s.busy; root.dataset.moved = s.moved; root.dataset.n = a.N ?? ""
  }

  // ---- the kernel
  const line = lineTo(model, () => { if (!dead) { root.dataset.mute = line.mute; paintWords() } })
  function press(what, args = {}) { dismissed = get("said")?.n || 0; return line.press(what, { args }) }
  const onCurves = () => { paintProfile(); paintPaths(); paintC() }
  const onState = () => {
    const s = get("state")
    if (asked !== null && Math.abs(s.C / asked - 1) < 1e-9) asked = null
    if (!held && asked === null) C = s.C
    paintProfile(); paintPaths(); paintC(); paintWords()
  }
  const onAnswer = () => { paintC(); paintWords() }
  let queued = 0
  const soon = bit => () => { queued |= bit; if (queued === bit) requestAnimationFrame(() => { const q = queued; queued = 0; if (dead) return; q & 1 ? onState() : q & 2 ? onCurves() : 0; if (q & 4 || q & 2) onAnswer() }) }
  const events = { "change:state": soon(1), "change:curves": soon(2), "change:answer": soon(4), "change:said": soon(4) }
  for (const name in events) model.on(name, events[name])
  onState()
  return () => {
    dead = true; clearTimeout(rest); clearTimeout(copied)
    line.close(); for (const p of [profile, optimum, losses]) p.close()
    for (const name in events) model.off(name, events[name])
  }
}
export default { render }

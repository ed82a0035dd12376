// The browser half of RunView: progress, live curves, profile, table of runs, buttons. `vegaEmbed` comes from vl-convert's bundle; nothing is fetched.
// Vega draws the axes and the profile. The curves are drawn here, in a few milliseconds however many move, so that zooming and filtering answer at once.
// The kernel sends whole states, never differences, so a page that is reloaded, or opened in a second tab, shows the same.
const STATES = ["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
const MARKS = { PENDING: "·", RUNNING: "▶", STOPPED: "‖", SUCCEEDED: "✓", FAILED: "✕" }
const WORDS = { PENDING: "waiting", RUNNING: "running", STOPPED: "stopped", SUCCEEDED: "done", FAILED: "failed" }
const RANK = [3, 0, 2, 4, 1]          // running, failed, stopped, waiting, done
const SILENT_S = 30                    // without a tick for so long, the view says so
const PAD = { left: 60, right: 16, top: 8, bottom: 44 }   // of a chart; fixed, so that nothing jumps as labels change

function curve(data) {                 // as `curve_bytes` packs it: two arrays
  if (!data || !data.byteLength) return { x: new Float64Array(), y: new Float64Array() }
  const bytes = data.buffer ? data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength) : data
  const [x0, x1, y0, y1] = Array.from(new Float32Array(bytes, 0, 4), Math.log), q = new Uint16Array(bytes, 16), n = q.length / 2, x = new Float64Array(n), y = new Float64Array(n)
  for (let i = 0; i < n; i++) { x[i] = Math.exp(x0 + q[i] / 65535 * (x1 - x0)); y[i] = Math.exp(y0 + q[n + i] / 65535 * (y1 - y0)) }
  return { x, y }
}

// ---------------------------------------------------------------- a chart whose axes are ours

class Chart {
  constructor(holder, name) { this.holder = holder; this.name = name; this.view = null; this.shown = null; this.size = 0; this.ends = {}; this.embed = make("div", "", holder) }

  async show(spec, ink, width) {       // embedded again only when the plan, the colours or the page's ink have changed; was it?
    const key = JSON.stringify(spec).replaceAll("currentColor", ink), wide = Math.max(120, Math.round(width))
    if (key === this.shown) {
      if (this.view && wide !== this.size) { this.size = wide; this.view.width(wide); this.dirty = true }
      return false
    }
    this.shown = key; this.size = wide
    if (this.res) this.res.finalize()
    this.embed.textContent = ""
    const dark = getComputedStyle(document.body).colorScheme.includes("dark") || document.body.dataset.jpThemeLight === "false"
    this.res = await vegaEmbed(make("div", "", this.embed), { ...JSON.parse(key), width: wide, padding: PAD, autosize: "none" }, { mode: "vega-lite", actions: false, renderer: "canvas", tooltip: { theme: dark ? "dark" : "light" } })
    this.view = this.res.view
    this.sent = {}
    return true
  }

  axis(letter, ends, n) {              // ends and ticks of an axis
    if (!ends) return
    const key = ends.join()
    this.ends[letter] = ends
    if (this.sent[letter] === key) return
    this.sent[letter] = key; this.dirty = true
    this.view.signal(letter + "0", ends[0]).signal(letter + "1", ends[1]).signal(letter + "ticks", logTicks(...ends, n))
  }

  async run() { await this.view.runAsync(); this.dirty = false }

  place() {                            // where the plot lies in the holder: left, top, width, height
    return [PAD.left, PAD.top, this.view.width(), this.view.height()]
  }
  at(letter, v) {                      // pixels in the plot
    const [a, b] = this.ends[letter].map(Math.log), s = (Math.log(v) - a) / (b - a)
    return letter === "x" ? s * this.view.width() : (1 - s) * this.view.height()
  }
  back(px) { const [a, b] = this.ends.x.map(Math.log); return Math.exp(a + px / this.view.width() * (b - a)) }
  close() { if (this.res) this.res.finalize() }
}

// ---------------------------------------------------------------- the view

async function render({ model, el }) {
  const get = name => model.get(name)
  const root = rootOf(el, "snb-run", get("status").view)
  const picked = new Set(), states = new Set(), groups = new Set()      // what the reader has chosen: runs by id, states, groups of the legend
  let by = "budget", words = "", sort = { column: "state", down: false }, cursor = null, asking = null, zoom = null, hovered = null, gone = "", silent = false, lastTick = Date.now(), dead = false

  // ---- head: how far, how long, pause
  const head = make("div", "head", root), count = make("span", "count", head), share = make("span", "soft", head), left = make("span", "left", head), acts = make("span", "acts", head)
  const bar = make("div", "bar", root), fill = make("i", "", bar)
  for (const [k, v] of [["role", "progressbar"], ["aria-label", "share of the sweep's FLOPs that is done"], ["aria-valuemin", 0], ["aria-valuemax", 100]]) bar.setAttribute(k, v)
  const pause = button("push pause", "Pause", acts, () => press(get("status").can?.paused ? "resume" : "pause"))
  const note = make("div", "note", root)
  note.setAttribute("role", "status"); note.hidden = true

  function paintHead() {
    const s = get("status"), rows = get("rows"), n = rows.length, done = rows.filter(r => r[0] === 3).length, can = s.can
    put(count, n ? `${done} of ${n} runs done` : "no runs yet")
    put(share, n && s.flops ? `${Math.floor(100 * s.share)} % of ${s.flops} FLOPs` : "")
    const at = seconds => new Date(Date.now() + 1000 * seconds).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    const training = rows.filter(r => r[0] === 1).length
    if (can?.paused) put(left, can.over ? "" : training ? `pausing: ${training} ${training === 1 ? "run writes its checkpoint" : "runs write their checkpoints"}` : "paused")
    else if (left.dataset.for !== JSON.stringify(s.left) || !s.left) {
      left.dataset.for = JSON.stringify(s.left)
      put(left, !s.left ? "" : s.left_text + (s.left[2] > 300 && s.left[2] < 72000 ? `, done ${at(s.left[0]) === at(s.left[2]) ? "at " + at(s.left[0]) : at(s.left[0]) + " to " + at(s.left[2])}` : ""))
    }
    fill.style.transform = `scaleX(${(s.share || 0).toFixed(4)})`
    bar.setAttribute("aria-valuenow", Math.round(100 * (s.share || 0)))
    bar.setAttribute("aria-valuetext", `${count.textContent}, ${share.textContent}, ${left.textContent}`)
    acts.hidden = !can
    put(pause, can?.paused ? "Resume" : "Pause")
    pause.disabled = !can || !can.alive || can.over || kernel.mute
    paintNote()
  }

  function paintNote() {               // the worst first, one at a time
    const s = get("status"), said = get("said"), can = s.can, live = get("rows").some(r => r[0] < 3)
    const [kind, text] = gone ? ["bad", gone] : silent ? ["bad", `No news from the kernel for ${Math.round((Date.now() - lastTick) / 1000)} s: it is gone, or very busy. This is its last word; run the cell again to follow the runs.`]
      : said.n && !said.ok && said.n !== dismissed ? ["bad", said.text]
      : s.error ? ["bad", s.error] : can?.error ? ["bad", `Whoever trains does not answer: ${can.error}`]
      : kernel.mute ? ["", "The kernel is busy with a cell and hears no buttons meanwhile. Interrupt the kernel (Ctrl-C, or ■ above) to pause."]
      : can && !can.alive && live ? ["", "Nobody trains these runs just now. The same run_sweep line goes on with them."]
      : s.doubt ? ["", s.doubt] : ["", ""]
    put(note, text); note.hidden = !text; note.className = "note " + kind
    root.classList.toggle("gone", !!(gone || silent))
  }
  let dismissed = get("said").n || 0     // what was said before this page was loaded

  // ---- asking the kernel: first whether it hears, then what is wanted
  const kernel = lineTo(model, () => {
    if (kernel.gone) gone = "The kernel that this view belonged to is gone. This is its last word; run the cell again to follow the runs."
    root.dataset.mute = kernel.mute; paintHead(); paintActs()
  }, !!get("status").can)
  async function press(what, run) {
    dismissed = get("said").n || 0
    await kernel.press(what, { run: run ?? null })
  }

  // ---- filters
  const filters = make("div", "row filters", root), chips = {}
  filters.setAttribute("role", "group"); filters.setAttribute("aria-label", "which runs to show")
  for (const name of ["RUNNING", "FAILED", "STOPPED", "PENDING", "SUCCEEDED"]) {
    const chip = chips[name] = button("chip " + name, "", filters, () => { states.has(name) ? states.delete(name) : states.add(name); chip.setAttribute("aria-pressed", states.has(name)); filter() })
    const mark = make("i", "", chip, MARKS[name])
    mark.setAttribute("aria-hidden", "true"); chip.text = make("span", "", chip)
    chip.setAttribute("aria-pressed", false)
  }
  const field = make("input", "field", filters)
  field.type = "search"; field.placeholder = "filter by size, budget, reason"; field.setAttribute("aria-label", "filter runs by text")
  field.addEventListener("input", () => { words = field.value.trim().toLowerCase(); filter() })
  const found = make("span", "tag found", filters)

  // ---- charts
  const charts = make("div", "charts", root)
  const figure = (cls, title) => {
    const f = make("figure", cls, charts), caption = make("figcaption", "", f)
    make("span", "", caption, title)
    const says = make("span", "soft", caption), plot = make("div", "plot", f)
    plot.setAttribute("role", "img")
    return { caption, says, plot }
  }
  const one = figure("curves", "Training loss"), two = figure("profile", "Held-out loss by size")
  const reset = button("push small reset", "reset zoom", one.caption, () => zoomTo(null))
  reset.hidden = true
  const toggle = make("span", "by row", one.caption)
  make("span", "tag", toggle, "colour by")
  const segments = make("span", "segments", toggle), bys = {}
  for (const name of ["budget", "size"]) bys[name] = button("", name, segments, () => { by = name; groups.clear(); stale = true; paintLegend(true); filter() })
  const curves = new Chart(one.plot, "curves"), profile = new Chart(two.plot, "profile"), empty = make("div", "empty", two.plot, "fills in as runs end"), blank = make("div", "empty", one.plot, "no step yet")
  const sheet = make("canvas", "sheet", one.plot), over = draw("svg", one.plot, { class: "over", "aria-hidden": "true" }), hot = draw("g", over, {}), brush = draw("rect", over, { class: "brush", visibility: "hidden" })
  const tip = make("div", "tip", one.plot)
  tip.hidden = true

  const legend = make("div", "row legend", root)
  legend.setAttribute("role", "group")
  function paintLegend(force) {
    const g = get("groups")[by], key = by + JSON.stringify(g || {})
    for (const name in bys) bys[name].setAttribute("aria-pressed", name === by)
    if (legend.dataset.key === key && !force) return
    legend.dataset.key = key; legend.textContent = ""
    legend.setAttribute("aria-label", `show only some ${by}s`)
    make("span", "tag", legend, by === "budget" ? "budget, FLOPs" : "size")
    g?.names.forEach((name, i) => {
      const chip = button("chip", "", legend, () => { groups.has(name) ? groups.delete(name) : groups.add(name); chip.setAttribute("aria-pressed", groups.has(name)); filter() })
      chip.setAttribute("aria-pressed", groups.has(name))
      symbol(chip, g.shapes[i], g.colors[i]); make("span", "", chip, name)
    })
  }

  let shownKey = "", hits = [], stale = true, total = 0, refit = false
  const points = []                    // of each run: two arrays
  function looks(k) { const g = get("groups")[by], i = g ? g.names.indexOf(get("runs")[k][by]) : -1; return i < 0 ? ["circle", "gray"] : [g.shapes[i], g.colors[i]] }
  const visible = k => !trs[k] || !trs[k].tr.hidden

  async function paintCurves() {
    const runs = get("runs"), rows = get("rows"), style = getComputedStyle(root)
    if (await curves.show(get("specs").curves, style.color, one.plot.clientWidth - PAD.left - PAD.right)) stale = true
    let lo = Infinity, hi = 0, least = Infinity
    total = 0
    for (let k = 0; k < runs.length; k++) {
      const data = get("c" + k)
      if (!data) continue
      if (points[k]?.data !== data) { points[k] = { data, ...curve(data) }; stale = true }
      const { x, y } = points[k]
      total += x.length
      if (!x.length || !visible(k)) continue
      for (let j = 0; j < x.length; j++) if (!zoom || (x[j] >= zoom[0] && x[j] <= zoom[1])) { if (y[j] < lo) lo = y[j]; if (y[j] > hi) hi = y[j] }
      least = Math.min(least, x[0])
    }
    const D = Math.max(...runs.map(r => r.d || 0)), wide = one.plot.clientWidth
    curves.axis("x", zoom || within(refit ? null : curves.ends.x, least < Infinity ? Math.max(least, D / 1e5) : D / 200, D), Math.max(3, Math.floor(wide / 80)))
    curves.axis("y", within(refit ? null : curves.ends.y, lo, hi) || curves.ends.y || [1, 10], 9)
    refit = false
    if (curves.dirty) { await curves.run(); stale = true }
    const now = JSON.stringify([runs.map((_, k) => visible(k)), rows.map(r => r[0]), by, style.color])
    if (now !== shownKey) { shownKey = now; stale = true }
    blank.hidden = total > 0; reset.hidden = !zoom
    if (stale) { stale = false; hits = []; paintSheet(); paintOver() }
    root.dataset.rows = total
    one.plot.setAttribute("aria-label", `Training loss against tokens of ${points.filter(p => p?.x.length).length} runs, coloured by ${by}` + (hi > 0 ? `; ${zoom ? "zoomed; " : ""}from ${si(hi)} to ${si(lo)} nats a token` : "") + ". The table below has each run's numbers.")
  }

  function paintSheet() {              // the curves: those that the filter leaves out are faded and not gone
    const [ox, oy, w, h] = curves.place(), scale = devicePixelRatio || 1, c = sheet.getContext("2d"), rows = get("rows")
    sheet.width = Math.ceil((w + 12) * scale); sheet.height = Math.ceil((h + 12) * scale)
    Object.assign(sheet.style, { left: ox - 6 + "px", top: oy - 6 + "px", width: w + 12 + "px", height: h + 12 + "px" })
    c.setTransform(scale, 0, 0, scale, 6 * scale, 6 * scale)
    c.lineWidth = 1.4; c.lineJoin = c.lineCap = "round"
    const ks = points.map((_, k) => k).filter(k => points[k]?.x.length), [x0, x1] = curves.ends.x
    for (const k of [...ks.filter(k => !visible(k)), ...ks.filter(visible)]) {
      const { x, y } = points[k], [shape, color] = looks(k), n = x.length - 1
      c.globalAlpha = visible(k) ? .9 : .1; c.strokeStyle = c.fillStyle = color
      c.save(); c.beginPath(); c.rect(0, 0, w, h); c.clip(); c.beginPath()
      for (let j = 0; j <= n; j++) c.lineTo(curves.at("x", x[j]), curves.at("y", y[j]))
      c.stroke(); c.restore()
      if (x[n] < x0 || x[n] > x1) continue
      const px = curves.at("x", x[n]), py = curves.at("y", y[n])
      if (py < -3 || py > h + 3) continue
      c.save(); c.translate(px, py)
      if (STATES[rows[k]?.[0]] === "FAILED") { c.lineWidth = 2.2; c.beginPath(); c.moveTo(-4, -4); c.lineTo(4, 4); c.moveTo(4, -4); c.lineTo(-4, 4); c.stroke() }
      else { c.scale(.58, .58); c.translate(-5, -5); c.fill(new Path2D(SHAPES[shape] || SHAPES.circle)) }
      c.restore()
    }
  }

  let profileKey = ""
  async function paintProfile() {
    const runs = get("runs"), rows = get("rows"), lines = get("lines"), ink = getComputedStyle(root).color
    if (await profile.show(get("specs").profile, ink, two.plot.clientWidth - PAD.left - PAD.right)) { profileKey = "" }
    const done = []
    runs.forEach((r, k) => { const v = rows[k]?.[3]; if (finite(v) && v > 0 && r.n > 0) done.push({ g: r.budget, x: r.n, y: v, says: r.N, role: r.role }) })
    const best = {}
    for (const d of done) if (d.role !== "hold-out" && (!best[d.g] || d.y < best[d.g].y)) best[d.g] = d
    for (const d of Object.values(best)) d.label = d.g
    const key = JSON.stringify([done, lines])
    if (key !== profileKey) {
      profileKey = key; profile.dirty = true
      const flat = lines.flatMap((l, k) => l.x.map((x, j) => ({ k, g: l.g, fit: l.fit, x, y: l.y[j] })))
      profile.view.change("done", profile.view.changeset().remove(() => true).insert(done))
      profile.view.change("parabola", profile.view.changeset().remove(() => true).insert(flat))
    }
    const N = runs.map(r => r.n).filter(n => n > 0), ys = done.map(d => d.y)
    profile.axis("x", within(profile.ends.x, Math.min(...N), Math.max(...N)), Math.max(3, Math.floor(two.plot.clientWidth / 80)))
    profile.axis("y", ys.length ? within(profile.ends.y, Math.min(...ys), Math.max(...ys)) : [1, 10], 9)
    empty.hidden = done.length > 0
    two.plot.classList.toggle("nothing", !done.length)
    if (profile.dirty) await profile.run()
    put(two.says, done.length ? `${done.length} of ${runs.length} runs` : "")
    two.plot.setAttribute("aria-label", done.length ? "Held-out loss against N, a line a budget. Lowest so far: " + Object.values(best).map(d => `${d.y.toFixed(3)} at N = ${d.says} on ${d.g} FLOPs`).join("; ") + "." : "Held-out loss against N: no run has ended yet.")
  }

  // ---- over the curves: what is picked and under the pointer, zoom
  function line(k) {
    const { x, y } = points[k] || { x: [] }
    let d = ""
    for (let j = 0; j < x.length; j++) { if (zoom && (x[j] < zoom[0] / 1.0001 || x[j] > zoom[1] * 1.0001)) continue; d += `${d ? "L" : "M"}${curves.at("x", x[j]).toFixed(1)} ${curves.at("y", y[j]).toFixed(1)}` }
    return d
  }
  function paintOver() {
    if (!curves.view || !curves.ends.x) return
    const [ox, oy, w, h] = curves.place(), runs = get("runs")
    over.setAttribute("width", ox + w + 8); over.setAttribute("height", oy + h + 8)
    hot.textContent = ""
    hot.setAttribute("transform", `translate(${ox},${oy})`)
    const ks = runs.map((r, k) => k).filter(k => (picked.has(runs[k].id) || k === hovered) && points[k]?.x.length)
    for (const k of ks) { const d = line(k); if (!d) continue; draw("path", hot, { d, class: "halo" }); draw("path", hot, { d, class: "hot", stroke: looks(k)[1], "data-run": k }) }
    root.dataset.hot = ks.length
    trs.forEach((t, k) => t.tr.classList.toggle("hot", k === hovered))
  }
  function nearest(px, py) {           // the run whose curve passes closest, within 24 pixels
    let best = null, least = 24 ** 2
    for (let k = 0; k < points.length; k++) if (points[k] && visible(k)) {
      const p = hits[k] ??= Array.from(points[k].x, (x, j) => [curves.at("x", x), curves.at("y", points[k].y[j])])
      for (let j = 0; j < p.length; j++) {
        const a = p[Math.max(j - 1, 0)], b = p[j], dx = b[0] - a[0], dy = b[1] - a[1], s = Math.max(0, Math.min(1, ((px - a[0]) * dx + (py - a[1]) * dy) / (dx * dx + dy * dy || 1)))
        const d = (a[0] + s * dx - px) ** 2 + (a[1] + s * dy - py) ** 2
        if (d < least) { least = d; best = [k, s < .5 ? Math.max(j - 1, 0) : j] }
      }
    }
    return best
  }
  function where(e) { const [ox, oy] = curves.place(), r = over.getBoundingClientRect(); return [e.clientX - r.left - ox, e.clientY - r.top - oy] }
  let from = null, last = null, queued = false
  const inside = (px, py) => { const [, , w, h] = curves.place(); return px >= 0 && px <= w && py >= 0 && py <= h }
  over.addEventListener("pointerdown", e => {
    if (!curves.view || e.button) return
    const [px, py] = where(e)
    if (!inside(px, py)) return
    from = px; over.setPointerCapture(e.pointerId)
  })
  over.addEventListener("pointermove", e => {
    if (!curves.view || !curves.ends.x) return
    const [px, py] = where(e), [ox, oy, w, h] = curves.place()
    if (from !== null && Math.abs(px - from) > 4) {
      const a = Math.max(0, Math.min(from, px)), b = Math.min(w, Math.max(from, px))
      for (const [k, v] of Object.entries({ x: ox + a, y: oy, width: Math.max(b - a, 0), height: h, visibility: "visible" })) brush.setAttribute(k, v)
      tip.hidden = true
      return
    }
    last = [px, py]
    if (!queued) { queued = true; requestAnimationFrame(() => { queued = false; if (last && !dead) hover(inside(...last) ? nearest(...last) : null, ox, oy, w) }) }
  })
  over.addEventListener("pointerup", e => {
    if (from === null) return
    const [px] = where(e), w = curves.view.width(), a = Math.max(0, Math.min(from, px)), b = Math.min(w, Math.max(from, px))
    from = null; brush.setAttribute("visibility", "hidden")
    if (b - a > 6) zoomTo([curves.back(a), curves.back(b)])
    else if (hovered !== null) pick(hovered, true)
  })
  over.addEventListener("pointercancel", () => { from = null; brush.setAttribute("visibility", "hidden") })
  over.addEventListener("pointerleave", () => { last = null; hover(null) })
  over.addEventListener("dblclick", () => zoomTo(null))
  function zoomTo(ends) { zoom = ends && ends[1] > ends[0] * 1.001 ? ends : null; refit = true; hover(null); update() }
  function hover(found, ox, oy, w) {
    const k = found ? found[0] : null
    if (k !== hovered) { hovered = k; paintOver() }
    tip.hidden = k === null
    root.dataset.hover = k === null ? "" : get("runs")[k].id
    if (k === null) return
    const run = get("runs")[k], row = get("rows")[k], { x, y } = points[k], j = found[1]
    tip.textContent = ""
    make("b", "", tip, `${MARKS[STATES[row[0]]]} ${WORDS[STATES[row[0]]]}`)
    make("span", "soft", tip, `  size ${run.size}` + (run.role === "grid" ? "" : `, ${run.role}`))
    const list = make("dl", "", tip)
    for (const [t, v] of [["budget", run.budget], ["N", run.N], ["tokens", `${si(x[j])} of ${run.D}`], ["training loss", y[j].toFixed(4)], ["held-out loss", finite(row[3]) ? row[3].toFixed(4) : null], ["tokens/s", finite(row[6]) ? si(row[6]) : null]])
      if (v !== null) { make("dt", "", list, t); make("dd", "", list, v) }
    const px = ox + curves.at("x", x[j]), py = oy + curves.at("y", y[j]), room = tip.offsetWidth
    tip.style.left = `${px + 14 + room > ox + w + 40 ? Math.max(0, px - 14 - room) : px + 14}px`
    tip.style.top = `${Math.max(0, Math.min(py - 20, 316 - tip.offsetHeight))}px`
  }

  // ---- table
  const box = make("div", "runs", root), table = make("table", "", box), thead = make("tr", "", make("thead", "", table)), body = make("tbody", "", table)
  table.setAttribute("role", "grid"); table.setAttribute("aria-label", "runs"); table.setAttribute("aria-multiselectable", "true")
  const COLUMNS = {                    // title, width, left?, what it sorts by
    state: ["state", 80, true, k => RANK[row(k)[0]] + "\t" + why(k)[0]], budget: ["budget", 80, false, k => get("runs")[k].c], size: ["size", 46, false, k => +get("runs")[k].size || get("runs")[k].size],
    N: ["N", 54, false, k => get("runs")[k].n], D: ["D", 54, false, k => get("runs")[k].d], progress: ["progress", 104, false, k => row(k)[1]], loss: ["train loss", 70, false, k => row(k)[2]],
    final: ["held-out", 66, false, k => row(k)[3]], speed: ["tokens/s", 66, false, k => row(k)[6]], attempt: ["tries", 42, false, k => row(k)[4]], role: ["role", 64, true, k => get("runs")[k].role],
    act: ["", 0, true, null] }
  const row = k => get("rows")[k] || [0, 0, null, null, 0, null, null, ""], why = k => row(k)[5] === null ? ["", ""] : get("failures")[row(k)[5]] || ["", ""]
  const cols = {}
  for (const [name, [title, width, isLeft, key]] of Object.entries(COLUMNS)) {
    const th = cols[name] = make("th", isLeft ? "l" : "", thead)
    th.scope = "col"
    if (width) th.style.width = width + "px"
    if (key) button("", title, th, () => { sort = { column: name, down: sort.column === name ? !sort.down : ["progress", "final", "speed", "attempt"].includes(name) && name !== "final" }; order(true) })
    else th.append(make("span", "", null, title))
  }
  let trs = []
  const seen = new IntersectionObserver(found => {
    for (const f of found) trs[f.target.k].near = f.isIntersecting
    if (found.some(f => f.isIntersecting)) update()
  }, { root: box, rootMargin: "150px" })

  function newRow(k) {
    const tr = make("tr", "run", body), td = {}
    for (const name in COLUMNS) td[name] = make("td", `${COLUMNS[name][2] ? "l " : ""}c-${name}`, tr)
    tr.tabIndex = -1; tr.k = k
    seen.observe(tr)
    tr.setAttribute("aria-selected", false)
    td.mark = make("i", "", td.state); td.word = make("span", "", td.state); td.mark.setAttribute("aria-hidden", "true")
    td.pg = make("i", "", make("span", "pg", td.progress)); td.pc = make("span", "pc", td.progress)
    tr.addEventListener("click", () => { if (!String(getSelection())) { move(k, false); pick(k) } })
    tr.addEventListener("focus", () => move(k, false))
    return { tr, td, detail: null, more: null, key: "", opened: false, near: k < 20 }
  }

  function paintTable() {
    const runs = get("runs"), roles = new Set(runs.map(r => r.role)).size > 1, acting = !!get("status").can
    while (trs.length < runs.length) trs.push(newRow(trs.length))
    const look = [roles, acting].join()
    if (table.dataset.look !== look) {
      table.dataset.look = look
      for (const [name, yes] of [["role", roles], ["act", acting]]) { cols[name].hidden = !yes; for (const t of trs) t.td[name].hidden = !yes }
    }
    const counts = {}
    runs.forEach((run, k) => {
      const [state, share, loss, final, attempt, , speed, asked] = row(k), name = STATES[state], { tr, td } = trs[k], [reason, trace] = why(k)
      counts[name] = (counts[name] || 0) + 1
      if (trs[k].state !== name) { trs[k].state = name; tr.classList.remove(...STATES); tr.classList.add(name); put(td.mark, MARKS[name]); put(td.word, WORDS[name]) }
      tell(k, reason, trace)
      if (!trs[k].near && trs[k].run === run) return               // it is painted when it is scrolled to
      const key = JSON.stringify([row(k), kernel.mute])
      if (trs[k].key === key && trs[k].run === run) return
      if (trs[k].run !== run) {
        trs[k].run = run; tr.dataset.run = run.id; tr.setAttribute("aria-selected", picked.has(run.id))
        td.budget.textContent = ""; const g = get("groups").budget, i = g.names.indexOf(run.budget)
        symbol(td.budget, g.shapes[i], g.colors[i]); td.budget.append(run.budget)
        put(td.size, run.size); put(td.N, run.N); put(td.D, run.D); td.N.title = run.says; put(td.role, run.role); td.role.hidden = !roles; td.act.hidden = !acting
        trs[k].text = `${run.id} ${run.budget} ${run.size} ${run.N} ${run.D} ${run.role}`.toLowerCase()
      }
      trs[k].key = key
      td.pg.style.width = share / 10 + "%"
      put(td.pc, (share / 10).toFixed(0) + " %")
      put(td.loss, finite(loss) ? loss.toFixed(3) : "-"); put(td.final, finite(final) ? final.toFixed(4) : "-")
      put(td.speed, si(speed)); put(td.attempt, attempt ? String(attempt) : "-")
      act(k, asked)
    })
    for (const name in chips) { put(chips[name].text, `${counts[name] || 0} ${WORDS[name]}`); chips[name].hidden = name === "STOPPED" && !counts[name] && !states.has(name); chips[name].disabled = !counts[name] && !states.has(name) }
    filterRows()
    order(false)
    if (cursor === null && trs.length) move(0, false)
  }

  function act(k, asked) {             // what can be done with a run: cancel, which asks once more, or retry
    const { td, tr } = trs[k], can = get("status").can, ended = STATES[row(k)[0]], now = asked ? "note:" + asked : asking === k ? "sure" : !can ? "" : ended === "FAILED" ? "retry" : ended === "SUCCEEDED" || !can.alive ? "" : "cancel"
    const key = now + kernel.mute
    if (td.act.dataset.now === key) return
    const focused = td.act.contains(document.activeElement)
    td.act.dataset.now = key; td.act.textContent = ""
    const name = `the run of size ${get("runs")[k].size} at ${get("runs")[k].budget}`
    if (now.startsWith("note:")) make("span", "soft", td.act, asked)
    else if (now === "sure") {
      button("push small sure", "cancel it", td.act, () => { asking = null; act(k, "cancelling"); press("cancel", get("runs")[k].id) }, `yes, cancel ${name}`)
      button("push small", "keep", td.act, () => { asking = null; act(k, "") }, `keep ${name}`).focus()
    } else if (now) {
      const b = button("push small", now, td.act, () => { if (now === "cancel") { asking = k; act(k, "") } else { act(k, "asking"); press("retry", get("runs")[k].id) } }, `${now} ${name}`)
      b.disabled = kernel.mute
    }
    for (const b of td.act.querySelectorAll("button")) b.tabIndex = k === cursor ? 0 : -1
    if (focused && now !== "sure") (td.act.querySelector("button:not(:disabled)") || tr).focus()
  }
  function paintActs() { trs.forEach((t, k) => { t.key = ""; t.td.act.dataset.now = "?" }); paintTable() }

  function tell(k, reason, trace) {    // why it failed, under the run; its traceback opens in place
    const t = trs[k], key = reason + "\n" + trace
    if (!reason) { t.detail?.remove(); t.detail = t.more = null; t.opened = false; return }
    if (t.detail?.dataset.key === key) return
    if (!t.detail) { t.detail = document.createElement("tr"); t.detail.className = "detail"; t.tr.after(t.detail); table.dataset.order = "" }
    t.detail.dataset.key = key; t.detail.textContent = ""
    const cell = make("td", "l", t.detail)
    cell.colSpan = Object.keys(COLUMNS).length
    if (!trace) { make("div", "reason", cell, reason); t.more = null; return }
    t.more = button("reason", reason, cell, () => open(k), `${reason}: show where it was raised`)
    t.pre = make("pre", "", cell, trace)
    t.more.tabIndex = k === cursor ? 0 : -1
    t.opened = !t.opened; open(k)
  }
  function open(k) {
    const t = trs[k]
    if (!t.more) return
    t.opened = !t.opened
    t.more.setAttribute("aria-expanded", t.opened); t.pre.hidden = !t.opened
    if (t.opened) t.detail.scrollIntoView({ block: "nearest" })
  }

  function order(asked) {              // rows do not move under the pointer, or while one is at work in them
    for (const name in cols) sort.column === name ? cols[name].setAttribute("aria-sort", sort.down ? "descending" : "ascending") : cols[name].removeAttribute("aria-sort")
    if (!asked && body.children.length && table.dataset.order && (body.matches(":hover") || body.contains(document.activeElement) || asking !== null)) return
    const by = COLUMNS[sort.column][3], keys = trs.map((_, k) => by(k)), sign = sort.down ? -1 : 1
    const compare = (a, b) => { const u = keys[a], v = keys[b], no = x => x === null || x === undefined || Number.isNaN(x); return no(u) || no(v) ? no(u) - no(v) : u < v ? -sign : u > v ? sign : 0 }
    const ks = trs.map((_, k) => k).sort((a, b) => compare(a, b) || a - b), now = ks.join()
    if (table.dataset.order === now) return
    table.dataset.order = now
    const top = box.scrollTop, focused = document.activeElement
    body.append(...ks.flatMap(k => trs[k].detail ? [trs[k].tr, trs[k].detail] : [trs[k].tr]))
    box.scrollTop = top
    if (focused && root.contains(focused) && focused !== document.activeElement) focused.focus({ preventScroll: true })
  }

  function filterRows() {
    const wanted = words.split(/\s+/).filter(Boolean)
    let n = 0
    trs.forEach((t, k) => {
      const name = STATES[row(k)[0]], text = `${t.text} ${WORDS[name]} ${why(k)[0].toLowerCase()}`
      const yes = (!states.size || states.has(name)) && (!groups.size || groups.has(get("runs")[k][by])) && wanted.every(w => text.includes(w))
      if (t.tr.hidden === yes) t.tr.hidden = !yes
      if (t.detail) t.detail.hidden = !yes
      n += yes
    })
    put(found, n < trs.length ? `${n} of ${trs.length} shown` : "")
    root.dataset.found = n
  }
  function filter() { filterRows(); update() }

  function pick(k, fromChart) {        // a run that is picked stands out in the chart
    const id = get("runs")[k].id
    picked.has(id) ? picked.delete(id) : picked.add(id)
    trs[k].tr.setAttribute("aria-selected", picked.has(id))
    if (fromChart && picked.has(id)) { const r = trs[k].tr; box.scrollTop = r.offsetTop - box.clientHeight / 2 }
    paintOver()
  }
  const stops = k => [trs[k].tr, ...trs[k].tr.querySelectorAll("button"), ...(trs[k].more ? [trs[k].more] : [])]
  function move(k, focus) {            // one row can be reached by Tab, the arrows go to the others
    if (cursor !== null && trs[cursor] && cursor !== k) for (const e of stops(cursor)) e.tabIndex = -1
    cursor = k
    for (const e of stops(k)) e.tabIndex = 0
    if (focus) trs[k].tr.focus()
  }
  body.addEventListener("keydown", e => {
    const tr = e.target.closest("tr.run"), k = trs.findIndex(t => t.tr === tr)
    if (k < 0) return
    if (e.key === "Escape" && asking !== null) { const was = asking; asking = null; act(was, ""); trs[was].tr.focus(); e.preventDefault(); return }
    const there = [...body.querySelectorAll("tr.run:not([hidden])")], i = there.indexOf(tr)
    const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: there.length - 1, PageDown: Math.min(i + 10, there.length - 1), PageUp: Math.max(i - 10, 0) }[e.key]
    if (to !== undefined) { e.preventDefault(); if (there[to]) move(trs.findIndex(t => t.tr === there[to]), true) }
    else if (e.target === tr && (e.key === " " || e.key === "Enter")) { e.preventDefault(); pick(k) }
    else if (e.target === tr && (e.key === "ArrowRight" || e.key === "ArrowLeft") && trs[k].opened !== (e.key === "ArrowRight")) { e.preventDefault(); open(k) }
  })

  // ---- a slow browser skips updates; it never queues them
  let busy = false, dirty = false
  async function update() {
    dirty = true
    if (busy) return
    for (busy = true; dirty && !dead;) {
      dirty = false
      try {
        paintHead(); paintLegend(); paintTable()
        if (get("specs").curves && one.plot.clientWidth) { await paintCurves(); await paintProfile() }
      } catch (e) { if (!dead) { note.hidden = false; note.className = "note bad"; note.textContent = `the view met an error: ${e.message}`; console.error(e) } }
      root.dataset.tick = get("tick")
      await new Promise(requestAnimationFrame)
    }
    busy = false
  }
  function onTick() { lastTick = Date.now(); gone = ""; silent = false; update() }
  function onSaid() {
    const said = get("said")
    paintNote()
    if (said.run && !said.ok) { const k = get("runs").findIndex(r => r.id === said.run); if (k >= 0) { trs[k].key = ""; trs[k].td.act.dataset.now = "?" } }
    update()
  }
  const watch = setInterval(() => { const was = silent; silent = Date.now() - lastTick > 1000 * SILENT_S; if (silent || was) paintNote() }, 2000)
  let width = 0
  const sized = new ResizeObserver(() => { if (Math.abs(root.clientWidth - width) > 4) { width = root.clientWidth; update() } })
  sized.observe(root)
  const theme = new MutationObserver(() => setTimeout(update, 300))      // light to dark, without a tick
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] })
  const events = { "change:tick": onTick, "change:said": onSaid }
  for (const name in events) model.on(name, events[name])
  await update()
  return () => {
    dead = true
    kernel.close(); clearInterval(watch); sized.disconnect(); theme.disconnect(); seen.disconnect()
    for (const name in events) model.off(name, events[name])
    curves.close(); profile.close()
  }
}
export default { render }

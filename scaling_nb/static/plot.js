// A small chart for the views that answer while a hand moves: axes, bands, lines, points that can be reached by key, a shaded zone, a rule to drag. Repainted in a few milliseconds.
// Colours are the page's ink and accent, and those of the groups. `parts.js` comes before.

class Plot {
  // axes: x and y, each {title, log, format: "si" | "sci" | digits, ends: [lo, hi] or none for the data's}; on: {pick(id), hover(group, id), rule(value, done), keys: points can be reached though nothing is picked}
  constructor(holder, { x, y, height = 280, label = "", on = {}, pad = {} }) {
    Object.assign(this, { axes: { x, y }, height, on, pad: { left: 58, right: 14, top: 10, bottom: 42, ...pad }, data: {}, ends: {}, marks: new Map(), lit: null, cursor: null })
    this.box = make("div", "snb-plot", holder)
    this.svg = draw("svg", this.box, { height, "aria-label": label, role: on.pick || on.keys ? "group" : "img" })
    this.tip = make("div", "tip", this.box)
    this.tip.hidden = true
    const clip = "c" + Math.random().toString(36).slice(2), defs = draw("defs", this.svg, {})
    this.clip = draw("rect", draw("clipPath", defs, { id: clip }), {})
    this.g = {}
    for (const name of ["zone", "grid", "band", "line", "mark", "rule", "point", "text"]) this.g[name] = draw("g", this.svg, { class: name, ...(["band", "line"].includes(name) ? { "clip-path": `url(#${clip})` } : {}), ...(["zone", "grid", "band", "line", "mark", "text"].includes(name) ? { "aria-hidden": "true" } : {}) })
    this.svg.addEventListener("keydown", e => this.key(e))
    this.svg.addEventListener("pointerleave", () => this.told(null))
    this.sized = new ResizeObserver(() => { if (Math.abs(this.box.clientWidth - (this.width || 0)) > 1) this.paint() })
    this.sized.observe(this.box)
  }

  // data: lines [{x, y, color, group, cls}], bands [{x, low, high, color, group, cls}], points [{id, x, y, shape, color, group, size, cls, says, tip, under}], zones [{from, to, label}],
  // rules [{x, label, cls}], spans [{x, x2, y, y2, color, group, cls}], texts [{x, y, text, cls, anchor}], rule {x, min, max, label, text}, label
  update(data) { Object.assign(this.data, data); this.paint() }
  close() { this.sized.disconnect() }

  // ---------------------------------------------------------------- scales
  at(axis, v) {
    const [a, b] = this.ends[axis], f = this.axes[axis].log ? Math.log : v => v, s = (f(v) - f(a)) / (f(b) - f(a))
    return axis === "x" ? this.pad.left + s * this.w : this.pad.top + (1 - s) * this.h
  }
  back(px) {
    const [a, b] = this.ends.x, s = (px - this.pad.left) / this.w
    return this.axes.x.log ? a * (b / a) ** s : a + (b - a) * s
  }
  span(axis) {                         // ends that hold the data: they stay while these fit
    const { log, ends } = this.axes[axis], d = this.data, other = axis === "x" ? ["x", "x2"] : ["y", "y2", "low", "high"]
    if (ends) return ends
    let lo = Infinity, hi = -Infinity
    const see = v => { if (finite(v) && (!log || v > 0)) { if (v < lo) lo = v; if (v > hi) hi = v } }
    for (const kind of ["lines", "bands", "points", "spans"]) for (const m of d[kind] || []) if (!m.free) for (const k of other) { const v = m[k]; v?.length !== undefined ? v.forEach(see) : see(v) }
    if (hi < lo) return this.ends[axis] || [1, 10]
    if (log) return within(this.ends[axis], lo, hi)
    const pad = .07 * (hi - lo) || .05 * Math.abs(hi) || 1, old = this.ends[axis]
    return old && lo >= old[0] && hi <= old[1] && hi - lo > .55 * (old[1] - old[0]) ? old : [lo - pad, hi + pad]
  }
  say(axis, v) {                       // of a tick
    const f = this.axes[axis].format
    return f === "si" ? si(v).replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "") : f === "sci" ? (+v.toPrecision(4)).toExponential().replace("e+", "e") : f === "percent" ? `${+(100 * v).toPrecision(3)} %` : `${+v.toPrecision(6)}`
  }

  // ---------------------------------------------------------------- painting
  paint() {
    const wide = this.box.clientWidth
    if (!wide) return
    this.width = wide; this.w = Math.max(60, wide - this.pad.left - this.pad.right); this.h = this.height - this.pad.top - this.pad.bottom
    for (const axis of ["x", "y"]) this.ends[axis] = this.span(axis)
    const frame = JSON.stringify([wide, this.ends, this.axes.x.title, this.axes.y.title])
    if (frame !== this.frame) { this.frame = frame; this.paintAxes() }
    if (this.data.label) this.svg.setAttribute("aria-label", this.data.label)
    this.shapes("band", this.data.bands, m => ({ d: this.area(m.x, m.low, m.high), fill: m.color || "currentColor" }))
    this.shapes("line", this.data.lines, m => ({ d: this.path(m.x, m.y), stroke: m.color || "currentColor" }))
    this.shapes("mark", this.data.spans, m => ({ d: this.path([m.x, m.x2 ?? m.x], [m.y, m.y2 ?? m.y]), stroke: m.color || "currentColor" }))
    this.paintZones(); this.paintPoints(); this.paintRule(); this.light(this.lit)
  }
  shapes(kind, list = [], of) {        // one path each, kept from one painting to the next
    const g = this.g[kind]
    while (g.childNodes.length > list.length) g.lastChild.remove()
    list.forEach((m, i) => {
      const e = g.childNodes[i] || draw("path", g, {})
      for (const [k, v] of Object.entries({ ...of(m), class: m.cls || "", "data-group": m.group ?? "" })) if (e.getAttribute(k) !== String(v)) e.setAttribute(k, v)
    })
  }
  path(x, y) {
    let d = "", pen = "M"
    for (let i = 0; i < x.length; i++) { if (!finite(x[i]) || !finite(y[i])) { pen = "M"; continue } d += `${pen}${this.at("x", x[i]).toFixed(1)} ${this.at("y", y[i]).toFixed(1)}`; pen = "L" }
    return d
  }
  area(x, low, high) {
    const ok = Array.from(x, (_, i) => i).filter(i => finite(low[i]) && finite(high[i])), p = (i, v) => `${this.at("x", x[i]).toFixed(1)} ${this.at("y", v[i]).toFixed(1)}`
    return ok.length ? "M" + [...ok.map(i => p(i, low)), ...ok.reverse().map(i => p(i, high))].join("L") + "Z" : ""
  }
  paintAxes() {
    const { left, top } = this.pad, { w, h } = this, g = this.g.grid
    this.svg.setAttribute("width", this.width)
    for (const [k, v] of Object.entries({ x: left, y: top, width: w, height: h })) this.clip.setAttribute(k, v)
    g.textContent = ""
    const ticks = (axis, n) => (this.axes[axis].log ? logTicks : linTicks)(...this.ends[axis], n)
    for (const v of ticks("x", Math.max(3, Math.floor(w / 56)))) {
      const x = this.at("x", v).toFixed(1)
      draw("path", g, { d: `M${x} ${top}V${top + h}` }); draw("text", g, { x, y: top + h + 16, "text-anchor": "middle" }).textContent = this.say("x", v)
    }
    for (const v of ticks("y", Math.max(3, Math.floor(h / 36)))) {
      const y = this.at("y", v)
      draw("path", g, { d: `M${left} ${y.toFixed(1)}H${left + w}` }); draw("text", g, { x: left - 8, y: (y + 4).toFixed(1), "text-anchor": "end" }).textContent = this.say("y", v)
    }
    draw("path", g, { class: "edge", d: `M${left} ${top + h}H${left + w}` })
    draw("text", g, { class: "title", x: left + w / 2, y: top + h + 35, "text-anchor": "middle" }).textContent = this.axes.x.title
    draw("text", g, { class: "title", x: -(top + h / 2), y: 12, transform: "rotate(-90)", "text-anchor": "middle" }).textContent = this.axes.y.title
  }
  paintZones() {
    const { top, left } = this.pad, g = this.g.zone, t = this.g.text, edge = v => Math.max(left, Math.min(left + this.w, this.at("x", v)))
    g.textContent = t.textContent = ""
    let used = 0
    for (const z of this.data.zones || []) {
      const a = edge(z.from), b = edge(z.to)
      if (b - a < 1) continue
      draw("rect", g, { x: a, y: top, width: b - a, height: this.h, class: z.cls || "" })
      if (!z.label) continue
      const wide = b - a > 72, low = !wide && b - 56 < used      // a narrow zone's label goes below that of the zone it lies in
      draw("text", t, { x: wide ? a + 7 : b - 2, y: top + (low ? 28 : 14), class: "zone", ...(wide ? {} : { "text-anchor": "end" }) }).textContent = z.label
      if (wide) used = a + 7 + 5.6 * z.label.length
    }
    for (const r of this.data.rules || []) {
      const x = this.at("x", r.x)
      if (x < left - 1 || x > left + this.w + 1) continue
      draw("path", g, { d: `M${x.toFixed(1)} ${top}V${top + this.h}`, class: r.cls || "" })
      if (r.label) draw("text", t, { x: x + 5, y: top + 14, class: "zone" }).textContent = r.label
    }
    for (const s of this.data.texts || []) draw("text", t, { x: this.at("x", s.x) + (s.dx || 0), y: this.at("y", s.y) + (s.dy || 0), "text-anchor": s.anchor || "start", class: s.cls || "" }).textContent = s.text
  }

  // ---------------------------------------------------------------- points
  paintPoints() {
    const g = this.g.point, there = new Set(), points = this.data.points || []
    for (const p of points) {
      there.add(p.id)
      let e = this.marks.get(p.id)
      if (!e) {
        e = g.insertBefore(document.createElementNS(SVG, "g"), p.under ? g.firstChild : null)      // what lies under others is no obstacle to a click on them
        draw("circle", e, { class: "reach", r: 10 }); e.shape = draw("path", e, { class: "shape" })
        e.addEventListener("pointerenter", () => this.told(p.id)); e.addEventListener("pointerleave", () => this.told(null))
        e.addEventListener("focus", () => { this.cursor = p.id; this.tab(); this.told(p.id) }); e.addEventListener("blur", () => this.told(null))
        if (this.on.pick) { e.setAttribute("role", "button"); e.addEventListener("click", v => this.on.pick(this.nearest(v, p.id))) } else if (this.on.keys) e.setAttribute("role", "img")
        this.marks.set(p.id, e)
      }
      e.point = p
      const x = this.at("x", p.x), y = this.at("y", p.y), out = x < this.pad.left - 2 || x > this.pad.left + this.w + 2 || y < this.pad.top - 2 || y > this.pad.top + this.h + 2
      const s = (p.size || 9) / 10, set = { class: "pt " + (p.cls || ""), transform: `translate(${x.toFixed(1)},${y.toFixed(1)})`, "data-group": p.group ?? "", "data-id": p.id, "aria-label": p.says || "" }
      if (p.pressed !== undefined) set["aria-pressed"] = p.pressed
      for (const [k, v] of Object.entries(set)) if (e.getAttribute(k) !== String(v)) e.setAttribute(k, v)
      e.style.display = out ? "none" : ""
      for (const [k, v] of Object.entries({ d: SHAPES[p.shape] || SHAPES.circle, transform: `scale(${s}) translate(-5,-5)`, fill: p.color || "currentColor", stroke: p.color || "currentColor" })) e.shape.setAttribute(k, v)
    }
    for (const [id, e] of this.marks) if (!there.has(id)) { e.remove(); this.marks.delete(id) }
    this.tab()
  }
  nearest(v, id) {                     // whose click it was, where the reach of one point covers another
    const r = this.svg.getBoundingClientRect(), far = p => Math.hypot(this.at("x", p.x) - (v.clientX - r.left), this.at("y", p.y) - (v.clientY - r.top))
    const near = v.detail ? this.data.points.filter(p => !p.under && far(p) < 10).sort((a, b) => far(a) - far(b))[0] : null     // one without a place comes from a key
    return near ? near.id : id
  }
  tab() {                              // one point can be reached by Tab, the arrows go to the others
    const ids = (this.data.points || []).map(p => p.id)
    if (!ids.includes(this.cursor)) this.cursor = ids[0] ?? null
    for (const [id, e] of this.marks) e.setAttribute("tabindex", (this.on.pick || this.on.keys) && id === this.cursor ? 0 : -1)
  }
  key(e) {
    const p = e.target.closest(".pt")?.point
    if (!p) return
    if (e.key === "Enter" || e.key === " ") { e.preventDefault(); if (this.on.pick) this.on.pick(p.id); return }
    const all = this.data.points, i = all.indexOf(p), line = all.filter(q => q.group === p.group), j = line.indexOf(p), groups = [...new Set(all.map(q => q.group))], k = groups.indexOf(p.group)
    const near = g => all.filter(q => q.group === g).sort((a, b) => Math.abs(this.at("x", a.x) - this.at("x", p.x)) - Math.abs(this.at("x", b.x) - this.at("x", p.x)))[0]
    const to = { ArrowRight: line[j + 1] || all[i + 1], ArrowLeft: line[j - 1] || all[i - 1], ArrowUp: k > 0 && near(groups[k - 1]), ArrowDown: groups[k + 1] !== undefined && near(groups[k + 1]), Home: all[0], End: all[all.length - 1] }[e.key]
    if (to === undefined) return
    e.preventDefault()
    if (to) this.marks.get(to.id)?.focus()
  }
  told(id) {                           // what is under the pointer, or has the focus, says its numbers
    const e = this.marks.get(id) || (document.activeElement?.closest?.(".pt")?.ownerSVGElement === this.svg ? document.activeElement : null), p = e?.point
    if (this.on.hover) this.on.hover(p?.group ?? null, p?.id ?? null)
    this.tip.hidden = !p?.tip
    if (!p?.tip) return
    this.tip.textContent = ""
    if (p.head) make("b", "", this.tip, p.head)
    facts(this.tip, p.tip)
    if (p.hint) make("div", "soft", this.tip, p.hint)
    const x = this.at("x", p.x), y = this.at("y", p.y), room = this.tip.offsetWidth, high = this.tip.offsetHeight
    this.tip.style.left = `${Math.max(0, x + 14 + room > this.width ? x - 14 - room : x + 14)}px`
    this.tip.style.top = `${Math.max(-8, Math.min(y - high / 2, this.height - high))}px`
  }
  light(group) {                       // one group stands out, the others fade; null for all
    this.lit = group
    for (const e of this.svg.querySelectorAll("[data-group]")) e.classList.toggle("dim", group !== null && e.dataset.group !== "" && e.dataset.group !== String(group))
  }

  // ---------------------------------------------------------------- a rule that a hand or the arrow keys move
  paintRule() {
    const r = this.data.rule, g = this.g.rule, { top, left } = this.pad
    if (!r) { g.textContent = ""; this.handle = null; return }
    if (!this.handle) {
      const e = this.handle = draw("g", g, { class: "drag", tabindex: r.tab ?? 0, role: "slider", "aria-orientation": "horizontal" })
      e.reach = draw("rect", e, { class: "reach", width: 18 }); e.stem = draw("path", e, { class: "stem" }); e.knob = draw("path", e, { class: "knob" }); e.name = draw("text", e, {})
      const to = ev => Math.max(this.data.rule.min, Math.min(this.data.rule.max, this.back(ev.clientX - this.svg.getBoundingClientRect().left)))
      let held = false
      e.addEventListener("pointerdown", ev => { if (ev.button) return; held = true; e.setPointerCapture(ev.pointerId); ev.preventDefault(); e.focus() })
      e.addEventListener("pointermove", ev => { if (held) this.on.rule(to(ev), false) })
      for (const end of ["pointerup", "pointercancel"]) e.addEventListener(end, ev => { if (held) { held = false; this.on.rule(to(ev), true) } })
      e.addEventListener("keydown", ev => {
        const { x, min, max } = this.data.rule, step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 }[ev.key], v = ev.key === "Home" ? min : ev.key === "End" ? max : step && x * 10 ** (step * .05)
        if (v) { ev.preventDefault(); this.on.rule(Math.max(min, Math.min(max, v)), true) }
      })
    }
    const e = this.handle, x = this.at("x", r.x), h = this.h
    for (const [k, v] of Object.entries({ "aria-label": r.label, "aria-valuemin": Math.log10(r.min).toFixed(2), "aria-valuemax": Math.log10(r.max).toFixed(2), "aria-valuenow": Math.log10(r.x).toFixed(2), "aria-valuetext": r.text })) e.setAttribute(k, v)
    for (const [k, v] of Object.entries({ x: x - 9, y: top, height: h })) e.reach.setAttribute(k, v)
    e.stem.setAttribute("d", `M${x.toFixed(1)} ${top}V${top + h}`); e.knob.setAttribute("d", `M${x.toFixed(1)} ${top + h}l-6 7h12z`)
    const right = x > left + this.w - 70
    e.name.setAttribute("x", x + (right ? -6 : 6)); e.name.setAttribute("y", top + h - 8); e.name.setAttribute("text-anchor", right ? "end" : "start"); e.name.textContent = r.name || ""
  }
}

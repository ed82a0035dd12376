// The browser half of RunView: progress line, live chart, table of runs. `vegaEmbed` comes from vl-convert's bundle; nothing is fetched.
// The kernel sends whole states, never differences, so a page that is reloaded, or opened in a second tab, shows the same.
const STATES = ["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
const MARKS = { PENDING: "·", RUNNING: "▶", STOPPED: "‖", SUCCEEDED: "✓", FAILED: "✕" }
const RANK = [2, 0, 1, 4, 0.5]          // order in the table: running, failed, stopped, pending, succeeded
const CSS = `
.snb-run{font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.45;color:var(--jp-ui-font-color1,inherit);max-width:900px}
.snb-run .bar{height:6px;border-radius:3px;background:rgba(128,128,128,.25);overflow:hidden;margin:6px 0 4px}
.snb-run .bar i{display:block;height:100%;background:#455cee;border-radius:3px;transition:width .4s}
.snb-run .bar.bad i{background:#e17267}
.snb-run .line{font-variant-numeric:tabular-nums}
.snb-run .doubt{color:var(--jp-ui-font-color2,inherit)}
.snb-run .chart{min-height:300px;margin:8px 0 2px}
.snb-run .runs{max-height:264px;overflow-y:auto;border-top:1px solid rgba(128,128,128,.3)}
.snb-run table{border-collapse:collapse;font-size:12px;font-variant-numeric:tabular-nums;width:100%}
.snb-run th{position:sticky;top:0;background:var(--jp-layout-color0,Canvas);font-weight:500;color:var(--jp-ui-font-color2,inherit)}
.snb-run th,.snb-run td{padding:3px 10px 3px 0;text-align:right;white-space:nowrap;border-bottom:1px solid rgba(128,128,128,.15)}
.snb-run th:nth-child(1),.snb-run td:nth-child(1),.snb-run th:last-child,.snb-run td:last-child{text-align:left}
.snb-run td:last-child{max-width:340px;overflow:hidden;text-overflow:ellipsis;padding-right:0}
.snb-run .FAILED td:first-child{color:#e17267;font-weight:600}.snb-run .RUNNING td:first-child{color:#5b70f3;font-weight:600}
.snb-run .PENDING,.snb-run .STOPPED{opacity:.65}
.snb-run meter{width:56px;height:10px;vertical-align:middle}
.snb-run .chip{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:6px}`

function floats(model, name) {
  const b = model.get(name)
  if (!b || !b.byteLength) return new Float32Array()
  return b.buffer ? new Float32Array(b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength)) : new Float32Array(b)
}

function make(tag, cls, parent) {
  const e = document.createElement(tag)
  if (cls) e.className = cls
  return parent ? parent.appendChild(e) : e
}

function curve(model, k, state) {
  const run = model.get("runs")[k], c = floats(model, "c" + k), n = c.length / 2, out = []
  for (let j = 0; j < n; j++) out.push({ r: k, "C of": run.budget, N: run.N, state, x: c[j], y: c[n + j], end: j === n - 1 })
  return out
}

async function render({ model, el }) {
  make("style", "", el).textContent = CSS
  const root = make("div", "snb-run", el)
  const line = make("div", "line", root), bar = make("div", "bar", root), fill = make("i", "", bar), doubt = make("div", "doubt", root)
  line.setAttribute("role", "status"); bar.setAttribute("role", "progressbar"); bar.setAttribute("aria-label", "share of the sweep's FLOPs that is done")
  bar.setAttribute("aria-valuemin", 0); bar.setAttribute("aria-valuemax", 100)
  const holder = make("div", "chart", root), box = make("div", "runs", root), table = make("table", "", box)
  box.tabIndex = 0; box.setAttribute("aria-label", "table of runs")
  table.innerHTML = "<thead><tr><th>run</th><th>budget</th><th>N</th><th>D</th><th>progress</th><th>training loss</th><th>held-out loss</th><th>attempt</th><th>reason</th></tr></thead><tbody></tbody>"
  let trs = [], res = null, shownSpec = null, drawn = [], draws = 0

  function paintTable() {
    const runs = model.get("runs"), rows = model.get("rows"), body = table.tBodies[0]
    while (trs.length < runs.length) {
      const tr = make("tr", "", body)
      trs.push(Object.assign(tr, { tds: Array.from({ length: 9 }, () => make("td", "", tr)) }))
    }
    runs.forEach((run, k) => {
      const [state, share, loss, final, attempt, reason] = rows[k] || [0, 0, null, null, 0, ""], name = STATES[state], t = trs[k].tds
      const key = JSON.stringify([run, rows[k]])
      if (trs[k].key === key) return
      trs[k].key = key
      trs[k].className = name
      t[0].textContent = `${MARKS[name]} ${name.toLowerCase()}`; t[0].title = run.id
      t[1].innerHTML = ""; make("span", "chip", t[1]).style.background = run.color; t[1].append(run.budget)
      t[2].textContent = run.N; t[2].title = run.says; t[3].textContent = run.D
      t[4].textContent = (share / 10).toFixed(0) + " %"
      t[5].textContent = loss === null ? "-" : loss.toFixed(3)
      t[6].textContent = final === null ? "-" : final.toFixed(4)
      t[7].textContent = attempt || "-"
      t[8].textContent = reason; t[8].title = reason
    })
    const order = trs.map((_, k) => k).sort((a, b) => RANK[rows[a]?.[0] ?? 0] - RANK[rows[b]?.[0] ?? 0] || a - b), now = order.join()
    if (table.dataset.order !== now) { table.dataset.order = now; body.append(...order.map(k => trs[k])) }
  }

  function paintLine() {
    const s = model.get("status")
    line.textContent = s.text || ""
    doubt.textContent = s.doubt || ""; doubt.style.display = s.doubt ? "" : "none"
    fill.style.width = (100 * (s.share || 0)).toFixed(1) + "%"
    bar.setAttribute("aria-valuenow", Math.round(100 * (s.share || 0)))
  }

  async function paintChart() {
    const ink = getComputedStyle(root).color   // the page's own ink: black on white, white on black
    const key = JSON.stringify(model.get("spec")).replaceAll("#787878", ink)
    if (key !== shownSpec) {             // the plan grew: axes and legend change
      shownSpec = key
      drawn = []; draws = 0
      if (res) res.finalize()
      holder.textContent = ""
      res = await vegaEmbed(make("div", "", holder), JSON.parse(key), { mode: "vega-lite", actions: false, renderer: "canvas" })
    }
    const runs = model.get("runs"), rows = model.get("rows"), moved = new Set(), fresh = []
    for (let k = 0; k < runs.length; k++) {            // only the curves that moved are replaced
      const state = STATES[rows[k]?.[0] ?? 0], data = model.get("c" + k), old = drawn[k]
      if (!data || (old && old.data === data && old.state === state)) continue
      const now = curve(model, k, state)
      if (old) moved.add(k)
      drawn[k] = { data, state, n: now.length }
      for (const p of now) fresh.push(p)
    }
    if (!fresh.length && !moved.size) return
    const change = res.view.changeset()
    if (moved.size) change.remove(p => moved.has(p.r))
    res.view.change("live", change.insert(fresh))
    if (draws++ % 10 === 0) res.view.resize()          // labels were laid out for other numbers: lay them out again, now and then
    await res.view.runAsync()
    root.dataset.rows = drawn.reduce((n, d) => n + (d ? d.n : 0), 0)
  }

  let busy = false, dirty = false, gone = false
  async function draw() {                // a slow browser skips updates; it never queues them
    dirty = true
    if (busy) return
    for (busy = true; dirty && !gone;) {
      dirty = false
      paintLine(); paintTable()
      if (Object.keys(model.get("spec")).length) await paintChart()
      root.dataset.tick = model.get("tick")
      await new Promise(requestAnimationFrame)
    }
    busy = false
  }
  model.on("change:tick", draw)
  await draw()
  return () => { gone = true; model.off("change:tick", draw); if (res) res.finalize() }
}
export default { render }

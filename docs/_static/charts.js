// Charts are drawn by the site's own copy of Vega when they come near the window; until then their pictures stand in.
addEventListener("DOMContentLoaded", () => {
  const charts = document.querySelectorAll("figure.chart")
  const draw = figure => {
    const still = figure.querySelector(".still"), live = document.createElement("div")
    live.style.display = "none"
    figure.append(live)
    vegaEmbed(live, JSON.parse(figure.querySelector("script").textContent), {mode: "vega-lite", renderer: "svg",
      actions: {export: true, source: false, compiled: false, editor: false}})
      .then(() => { still.remove(); live.style.display = ""; figure.dataset.drawn = 1 })
      .catch(e => console.error(e))
  }
  const seen = new IntersectionObserver(entries => {
    for (const e of entries) if (e.isIntersecting) { seen.unobserve(e.target); draw(e.target) }
  }, {rootMargin: "600px"})
  charts.forEach(c => seen.observe(c))
})

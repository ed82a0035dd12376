// One button opens or closes all folded code of a page, and every page after it.
addEventListener("DOMContentLoaded", () => {
  const folds = document.querySelectorAll(".cell.tag_exported details")
  const place = document.querySelector(".origin")
  const read = () => { try { return localStorage.getItem("snb-code") } catch { return null } }
  const set = open => {
    folds.forEach(d => { d.open = open })
    button.textContent = open ? "Fold the code" : "Unfold all code"
    button.setAttribute("aria-pressed", open)
  }
  if (!folds.length || !place) return
  const button = document.createElement("button")
  button.className = "fold-all"
  button.onclick = () => {
    const open = button.getAttribute("aria-pressed") !== "true"
    try { localStorage.setItem("snb-code", open ? "open" : "") } catch { /* private windows */ }
    set(open)
  }
  place.append(button)
  set(read() === "open")
})

// --- theme.js: light or dark, as the system says until someone says otherwise ----------------------------------------------------------

function addThemeSwitch() {
  const system = matchMedia("(prefers-color-scheme: dark)"), root = document.documentElement;
  let said = null;
  try { said = localStorage.getItem("aiflow-theme"); } catch { /* a page from disk may have no storage */ }
  const dark = () => (said ? said === "dark" : system.matches);
  const button = el("button", { type: "button", class: "theme", click: () => {
    said = dark() ? "light" : "dark";
    try { localStorage.setItem("aiflow-theme", said); } catch { /* then only this visit knows */ }
    show();
  } });
  function show() {
    root.style.colorScheme = said ?? "light dark";
    root.dataset.theme = dark() ? "dark" : "light";
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} theme`);
  }
  system.addEventListener("change", show);
  show();
  document.querySelector("nav > div").append(button);
}

// --- main.js: what is drawn when -----------------------------------------------------------------------------------------------------------

// Call `draw` once there is a width, and whenever that changes.
function redrawn(element, draw) {
  let width = -1;
  new ResizeObserver(() => {
    if (element.clientWidth !== width && element.clientWidth > 0) {
      width = element.clientWidth;
      draw();
    }
  }).observe(element);
}

// A section is drawn when it comes near the window; what another one leads to is drawn then.
function drawWhenNear(id, draw) {
  const section = document.getElementById(id);
  if (!section) return () => {};
  let done = false;
  const now = () => {
    if (done) return;
    done = true;
    draw(section.querySelector(".drawn"));
  };
  const watch = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      watch.disconnect();
      now();
    }
  }, { rootMargin: "600px" });
  watch.observe(section);
  return now;
}

addThemeSwitch();
for (const figure of document.querySelectorAll("figure[data-name]")) figure.append(saveButton(figure, figure.dataset.name));
const sections = [["changes", drawChanges], ["graph", drawGraph], ["timeline", drawTimeline], ["tasks", drawBrowser]].map(([id, draw]) => [id,
  drawWhenNear(id, draw)]);
const drawNow = Object.fromEntries(sections);
browse = (asked) => { drawNow.tasks(); browse(asked); };
openTimeline = KEPT.size ? (arm, task) => { drawNow.timeline(); openTimeline(arm, task); } : null;
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => drawNow[link.hash.slice(1)]?.());
requestAnimationFrame(() => setTimeout(() => performance.mark("drawn"))); // after the first frame

// The widgets' manager was written for MathJax 2 and calls MathJax.Hub.Queue(["Typeset", hub, node]).
// The book carries MathJax 3, where the same is a promise.
document.addEventListener("DOMContentLoaded", () => {
  const mathjax = window.MathJax;
  if (!mathjax || !mathjax.startup || mathjax.Hub) return;
  mathjax.Hub = {
    Queue: (...calls) => {
      for (const call of calls) {
        if (typeof call === "function") mathjax.startup.promise.then(call);
        else if (call[0] === "Typeset")
          mathjax.startup.promise.then(() => mathjax.typesetPromise(call[2] ? [call[2]] : undefined));
      }
    },
    Config: () => {},
    Configured: () => {},
  };
});

// What scrolls sideways (code, wide equations) can be reached by keyboard, and what the theme and
// the widgets draw has a name for those who do not see it.
const wideBlocks = "div.highlight > pre, mjx-container[display='true'], div.output.text_html";

function nameControls() {
  for (const handle of document.querySelectorAll(".noUi-handle[role='slider']:not([aria-label])")) {
    const label = handle.closest(".jupyter-widgets")?.querySelector(".widget-label");
    handle.setAttribute("aria-label", label?.textContent.trim() || "slider");
  }
  for (const block of document.querySelectorAll(wideBlocks)) {
    if (block.scrollWidth > block.clientWidth + 1) block.setAttribute("tabindex", "0");
  }
  for (const button of document.querySelectorAll("button.search-button-field[aria-label]")) {
    button.removeAttribute("aria-label");
  }
  for (const icon of document.querySelectorAll("button.theme-switch-button > .theme-switch")) {
    icon.setAttribute("aria-hidden", "true");
  }
  for (const fold of document.querySelectorAll(".bd-sidenav summary:not([aria-label])")) {
    const link = fold.closest("li").querySelector("a");
    fold.setAttribute("aria-label", `Pages of ${link.textContent.trim()}`);
  }
}

window.addEventListener("load", () => {
  nameControls();
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      nameControls();
    }, 50);
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
});

// Before the first paint, so that a dark page never flashes light. A file of its own, for no inline script may run.
(function () {
  var chosen = null;
  try {
    chosen = localStorage.getItem("fleetban-theme");
  } catch (e) {
    // Storage may be forbidden; the system's theme it is then.
  }
  var dark = chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();

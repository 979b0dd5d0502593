// Before the first paint: the theme and the language that were chosen, so that nothing flashes.
(() => {
  const root = document.documentElement;
  try {
    const theme = localStorage.getItem("studio.theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    const language = localStorage.getItem("studio.language");
    if (language) root.lang = language;
  } catch {
    // Storage may be blocked; the system's choice then holds.
  }
})();

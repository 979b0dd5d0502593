// Sets the chosen theme and language before the first paint, so that nothing flashes.
(() => {
  const root = document.documentElement;
  try {
    const theme = localStorage.getItem("studio.theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    const language = localStorage.getItem("studio.language");
    if (language) root.lang = language;
  } catch {
    // Storage is blocked: the settings of the system apply.
  }
})();

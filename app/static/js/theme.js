// Sets the theme and the language before the first paint.
(() => {
  const root = document.documentElement;
  let language = navigator.language;
  try {
    const theme = localStorage.getItem("studio.theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    language = localStorage.getItem("studio.language") || language;
    if (language !== navigator.language) root.lang = language;
  } catch {
    // Storage is blocked: the settings of the system apply.
  }
  const words = {
    de: ["Das Studio konnte nicht geladen werden.", "Noch einmal versuchen"],
    fr: ["Le studio n’a pas pu être chargé.", "Réessayer"],
  }[language.slice(0, 2)] ?? ["The studio could not be loaded.", "Try again"];
  addEventListener("error", ({ target }) => {
    const heading = document.querySelector("h1.loading");
    if (!heading || (target !== window && target.type !== "module")) return;
    const link = document.createElement("a");
    [heading.className, heading.textContent, link.href, link.textContent] = ["", words[0], location.href, words[1]];
    heading.after(link);
  }, true);
})();

// Starts ReDoc for /redoc. ReDoc adds <style> elements, so it needs the nonce of the page's Content-Security-Policy.
// The search is off, because it would need a worker from a blob: URL, which the policy forbids.

"use strict";

Redoc.init(
  `${document.documentElement.dataset.root}/openapi.json`,
  { nonce: document.querySelector("style").nonce, disableSearch: true },
  document.querySelector("#redoc"),
);

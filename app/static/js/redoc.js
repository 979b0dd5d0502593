// Starts ReDoc, which needs the nonce of the Content-Security-Policy for its <style> elements.
// The search is off, because it would need a worker from a blob: URL, which the policy forbids.

"use strict";

Redoc.init(
  `${document.documentElement.dataset.root}/openapi.json`,
  { nonce: document.querySelector("style").nonce, disableSearch: true },
  document.querySelector("#redoc"),
);

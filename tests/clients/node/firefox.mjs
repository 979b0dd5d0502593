// The studio in Firefox, through WebDriver BiDi. Jobs: speak, stop, dialogue, clone; see ../test_firefox.py.
import puppeteer from "puppeteer-core";
import { serve } from "./talk.mjs";

const PATIENCE_MS = 90_000;
const browser = await puppeteer.launch({
  browser: "firefox",
  executablePath: process.env.FIREFOX,
  protocolTimeout: PATIENCE_MS,
  defaultViewport: { width: 800, height: 600 },
  extraPrefsFirefox: { "media.autoplay.default": 0, "media.autoplay.blocking_policy": 0, "intl.accept_languages": "en" },
});

/** Opens a page of the studio, runs the actions, and returns their result with the errors of the page. */
async function visit(job, path, act) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  try {
    await page.goto(job.base_url.replace(/v1$/, path));
    return { ...(await act(page)), errors };
  } finally {
    await context.close();
  }
}

/** Waits until the function returns something in the page, and returns it. */
async function until(page, look, ...values) {
  const end_ms = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await page.evaluate(look, ...values);
    if (found) return found;
    if (Date.now() > end_ms) throw new Error(`waited in vain: ${look} ${values}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const seen = (page, selector) => until(page, (each) => Boolean(document.querySelector(each)?.checkVisibility()), selector);

async function press(page, selector) {
  await seen(page, selector);
  await page.$eval(selector, (element) => element.scrollIntoView({ block: "center" })); // not below the player
  await (await page.$(selector)).click();
}

const pressText = (page, text) => until(page, (each) => {
  const found = [...document.querySelectorAll("main button")].find((one) => one.textContent.startsWith(each));
  found?.click();
  return Boolean(found);
}, text);

async function write(page, selector, text) {
  await seen(page, selector);
  await page.$eval(selector, (field) => field.select());
  await (await page.$(selector)).type(text);
}

const knowsVoices = (page) => until(page, () => Boolean(document.querySelector('.pick:not([data-voices="0"])')));
const heard = (page) => until(page, async () => (await import("/static/js/player.js")).player.at_s > 0.6);

/** The take that the browser keeps, with its samples. */
const take = (page) => until(page, async () => {
  const { takes } = await import("/static/js/takes.js");
  const [first] = await takes.all();
  if (!first) return null;
  const samples = await takes.sound(first.id);
  let binary = "";
  for (const byte of new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength)) binary += String.fromCharCode(byte);
  return { body: first.body, partial: first.partial ?? "", audio: btoa(binary) };
});

await serve({
  speak: (job) => visit(job, "", async (page) => {
    await knowsVoices(page);
    await write(page, "#text", job.text);
    await press(page, "button.go");
    const made = await take(page);
    await seen(page, '#dock[data-playing="false"]');
    return { ...made, at_s: await page.evaluate(async () => (await import("/static/js/player.js")).player.at_s) };
  }),
  stop: (job) => visit(job, "", async (page) => {
    await knowsVoices(page);
    await page.evaluate((text) => {
      const field = document.getElementById("text");
      field.value = text;
      field.dispatchEvent(new Event("input"));
    }, job.text);
    await press(page, "button.go");
    await heard(page);
    await press(page, "button.go");
    return take(page);
  }),
  dialogue: (job) => visit(job, "dialogue", async (page) => {
    await pressText(page, "Fill in a sample");
    await seen(page, ".line");
    await pressText(page, "Speak all");
    return take(page);
  }),
  clone: (job) => visit(job, "voice-cloning#new", async (page) => {
    const next = () => press(page, ".wizard-foot button.primary");
    const step = (name) => seen(page, `.wizard[data-step=${name}]`);
    await step("sample");
    await press(page, "[data-tab=upload]");
    await (await page.$(".drop input[type=file]")).uploadFile(job.file);
    await seen(page, ".drop + .stack strong");
    await next();
    await seen(page, ".trim-handle.from[aria-valuenow]");
    await next();
    await step("words");
    await write(page, "#wizard-words", job.words);
    await next();
    await seen(page, ".verdict");
    await next();
    await press(page, ".wizard input[value=own]");
    await next();
    await step("try");
    await press(page, ".wizard .step button"); // speaks the sentence with the new voice
    await heard(page);
    await write(page, "#voice-name", job.name);
    await next();
    await seen(page, "#voice-title");
    return { voice: await page.evaluate(() => document.querySelector("[data-shown]").dataset.shown) };
  }),
});
await browser.close();

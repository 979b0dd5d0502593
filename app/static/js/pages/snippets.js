// The request as code: curl, Python and JavaScript.

import { hasKey, health } from "../api.js";
import { ROOT, button, copy, h, t, tabs } from "../ui.js";

const inShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const OPENAI_FIELDS = ["model", "voice", "input", "response_format", "speed"];

function snippets(path, body) {
  const url = location.origin + ROOT + path;
  const keyed = hasKey() || health.last?.key_needed;
  const file = `speech.${body.response_format}`;
  const json = JSON.stringify(body, null, 2);
  const curl = [`curl ${url}`, ...(keyed ? ['  -H "Authorization: Bearer $API_KEY"'] : []), '  -H "Content-Type: application/json"', `  -d ${inShell(json)}`, `  -o ${file}`].join(" \\\n");
  const js = `const answer = await fetch(${JSON.stringify(url)}, {\n  method: "POST",\n  headers: { "Content-Type": "application/json"${keyed ? ", Authorization: `Bearer ${process.env.API_KEY}`" : ""} },\n  body: JSON.stringify(${json.replaceAll("\n", "\n  ")}),\n});\nif (!answer.ok) throw new Error((await answer.json()).error.message);\nconst sound = await answer.arrayBuffer(); // ${body.response_format}\n`;
  let python;
  if (path === "/v1/audio/speech") {
    const known = Object.entries(body).filter(([name]) => OPENAI_FIELDS.includes(name));
    const ours = Object.entries(body).filter(([name]) => !OPENAI_FIELDS.includes(name));
    const lines = known.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
    if (ours.length) lines.push(`    extra_body={${ours.map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(", ")}},`);
    python = `${keyed ? "import os\n\n" : ""}from openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(`${location.origin}${ROOT}/v1`)}, api_key=${keyed ? 'os.environ["API_KEY"]' : '"unused"'})\nwith client.audio.speech.with_streaming_response.create(\n${lines.join("\n")}\n) as response:\n    response.stream_to_file(${JSON.stringify(file)})\n`;
  } else {
    python = `${keyed ? "import os\n" : ""}from pathlib import Path\n\nimport httpx\n\nanswer = httpx.post(\n    ${JSON.stringify(url)},\n${keyed ? '    headers={"Authorization": f"Bearer {os.environ[\'API_KEY\']}"},\n' : ""}    json=${json.replaceAll("\n", "\n    ")},\n    timeout=600,\n)\nPath(${JSON.stringify(file)}).write_bytes(answer.raise_for_status().content)\n`;
  }
  return { curl, python, js };
}

/** Creates tabs that show a request as code. Returns [elements, refresh(path, body)]. */
export function snippetTabs() {
  const blocks = Object.fromEntries(["curl", "python", "js"].map((kind) => [kind, h("code", { lang: "en" })]));
  const panel = (kind) => h("div.code", {}, h("pre", { tabindex: 0 }, blocks[kind]), button(t("copy"), () => copy(blocks[kind]), { name: "copy", look: "quiet" }));
  const list = tabs(t("snippet"), [["curl", "curl", panel("curl")], ["python", "Python", panel("python")], ["js", "JavaScript", panel("js")]]);
  return [list, (path, body) => {
    for (const [kind, code] of Object.entries(snippets(path, body))) blocks[kind].textContent = code;
  }];
}

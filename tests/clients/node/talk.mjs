// What the drivers in node share; see drivers/talk.py.
import readline from "node:readline";

export async function serve(jobs) {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const job = JSON.parse(line);
    let result;
    try {
      result = await jobs[job.do](job);
    } catch (error) {
      result = failure(error);
    }
    process.stdout.write(JSON.stringify(result) + "\n");
  }
}

function failure(error) {
  const classes = [];
  for (let kind = Object.getPrototypeOf(error); kind?.constructor !== Object; kind = Object.getPrototypeOf(kind)) {
    classes.push(kind.constructor.name);
  }
  const { status, statusCode, code, param, requestID, isRetryable, responseBody, reason } = error;
  return {
    error: {
      classes,
      message: error.message,
      status_code: status ?? statusCode ?? error.lastError?.statusCode ?? null,
      code: code ?? null,
      param: param ?? null,
      request_id: requestID ?? null,
      retryable: isRetryable ?? error.lastError?.isRetryable ?? null,
      body: responseBody ?? error.lastError?.responseBody ?? null,
      reason: reason ?? null,
    },
  };
}

export const sound = (bytes, more = {}) => ({ audio: Buffer.from(bytes).toString("base64"), ...more });

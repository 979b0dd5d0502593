// The part of the recorder in the audio thread: sends the samples of the microphone to the page.

const CHUNK = 1024; // samples: 21 ms at 48 kHz

class StudioCapture extends AudioWorkletProcessor {
  chunk = new Float32Array(CHUNK);
  filled = 0;

  process([[input]]) {
    if (!input) return true;
    for (let from = 0; from < input.length; ) {
      const part = input.subarray(from, from + CHUNK - this.filled);
      this.chunk.set(part, this.filled);
      this.filled += part.length;
      from += part.length;
      if (this.filled === CHUNK) {
        this.port.postMessage(this.chunk, [this.chunk.buffer]);
        this.chunk = new Float32Array(CHUNK);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("studio-capture", StudioCapture);

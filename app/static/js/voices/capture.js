// The part of the recorder that runs in the audio thread. It passes on the samples of the microphone, unchanged.

const PIECE = 1024; // samples: 21 ms at 48 kHz

class StudioCapture extends AudioWorkletProcessor {
  piece = new Float32Array(PIECE);
  filled = 0;

  process([[input]]) {
    if (!input) return true;
    for (let from = 0; from < input.length; ) {
      const part = input.subarray(from, from + PIECE - this.filled);
      this.piece.set(part, this.filled);
      this.filled += part.length;
      from += part.length;
      if (this.filled === PIECE) {
        this.port.postMessage(this.piece, [this.piece.buffer]);
        this.piece = new Float32Array(PIECE);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("studio-capture", StudioCapture);

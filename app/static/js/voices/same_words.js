// Compares the words of two texts.

const wordsOf = (text) => text.normalize("NFKC").toLocaleLowerCase().match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];

/** The share (0 to 1) of the words of `script` that `heard` has in the same order; 1 for an empty script. */
export function sameWords(script, heard) {
  const [wanted, got] = [wordsOf(script), wordsOf(heard)];
  if (!wanted.length) return 1;
  let row = new Array(got.length + 1).fill(0); // lengths of the longest common subsequence
  for (const word of wanted) {
    const next = [0];
    got.forEach((other, n) => next.push(word === other ? row[n] + 1 : Math.max(row[n + 1], next[n])));
    row = next;
  }
  return row.at(-1) / wanted.length;
}

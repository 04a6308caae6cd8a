// PSNR between two pictures as they are seen: over the ground, cut to 0 and 1.

const SEEN = 0.1; // of opacity, as holdall/splats/quality.py has it

// -> { whole, object } in dB, Infinity where nothing differs; object: where the first scene is, or null.
export function psnr(a, b, background) {
  let sum = 0, count = 0, covered = 0;
  for (let i = 0; i < a.length; i += 4) {
    let square = 0;
    for (let c = 0; c < 3; c++) {
      const x = Math.min(1, Math.max(0, a[i + c] + (1 - a[i + 3]) * background[c]));
      const y = Math.min(1, Math.max(0, b[i + c] + (1 - b[i + 3]) * background[c]));
      square += (x - y) * (x - y);
    }
    sum += square;
    if (a[i + 3] > SEEN) {
      covered += square;
      count++;
    }
  }
  const decibels = (squares, pixels) => -10 * Math.log10(squares / (3 * pixels));
  return { whole: decibels(sum, a.length / 4), object: count ? decibels(covered, count) : null };
}

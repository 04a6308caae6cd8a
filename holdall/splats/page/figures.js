// Numbers as they are read.

const SAME = 120; // dB: what holdall/splats/quality.py calls equal pictures

export function figures(table, scenes) {
  const first = scenes[0].bytes;
  for (const { name, bytes, count, degree } of scenes) {
    const row = table.insertRow();
    const share = scenes.length > 1 && bytes !== first ? ` (${((100 * bytes) / first).toFixed(1)} %)` : '';
    const colour = degree ? `harmonics to degree ${degree}` : 'same from all sides';
    for (const text of [name, bytes.toLocaleString('en') + share, count.toLocaleString('en'), colour]) {
      row.insertCell().textContent = text;
    }
  }
}

export function decibels({ whole, object }) {
  const say = (x) => (x === null ? 'none' : x >= SAME ? 'no difference' : `${x.toFixed(2)} dB`);
  return `${say(whole)} (object ${say(object)})`;
}

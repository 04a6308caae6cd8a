// What the server gives, checked: lengths are those that were promised, or there is one clear line.

export async function got(url) {
  let answer;
  try {
    answer = await fetch(url, { cache: 'no-store' });
  } catch {
    throw new Error('the program that shows this page has ended: start holdall view again');
  }
  if (!answer.ok) throw new Error(`${url} could not be had: ${answer.status} ${await answer.text()}`);
  return answer;
}

// The records of a scene as Uint32Array; told(bytes so far) is called on the way.
export async function records(url, facts, told) {
  const answer = await got(url);
  const wanted = facts.count * facts.texels * 16;
  if (wanted !== facts.length) throw new Error(`${facts.name}: ${facts.length} bytes are told for ${facts.count} Gaussians`);
  const found = new Uint8Array(wanted), reader = answer.body.getReader();
  let at = 0;
  for (;;) {
    let step;
    try {
      step = await reader.read();
    } catch {
      throw new Error(`${facts.name} arrived damaged: the connection ended after ${at} of ${wanted} bytes; load the page again`);
    }
    if (step.done) break;
    if (at + step.value.length > wanted) throw new Error(`${facts.name} arrived damaged: over ${wanted} bytes; load the page again`);
    found.set(step.value, at);
    told((at += step.value.length));
  }
  if (at !== wanted) throw new Error(`${facts.name} arrived damaged: ${at} of ${wanted} bytes; load the page again`);
  return new Uint32Array(found.buffer);
}

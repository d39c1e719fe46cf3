// Slices, decoded when they are first looked at. A slice holds HU + 1024 in 12 bits a pixel: each
// pixel's difference from what its left, upper and upper left neighbours foretell (the median edge
// detector of JPEG-LS), modulo 4096, zigzag, low bytes of all pixels, then high bytes, deflated.

const KEPT_SLICES = 48;
const decoded = new Map(); // slice -> promise of its Uint16Array; the last used come last

/** The pixels of a slice that is in this file, rows after rows: HU + 1024. */
function loadSlice(z) {
  const pixels = decoded.get(z) ?? decodeSlice(z);
  decoded.delete(z);
  decoded.set(z, pixels);
  if (decoded.size > KEPT_SLICES) decoded.delete(decoded.keys().next().value);
  return pixels;
}

async function decodeSlice(z) {
  const text = document.getElementById(`slice-${z}`).textContent;
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  return addPrediction(planes, data.width, data.height);
}

function addPrediction(planes, width, height) {
  const count = width * height;
  const pixels = new Uint16Array(count);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const coded = planes[i] | (planes[count + i] << 8);
      const difference = (coded >> 1) ^ -(coded & 1);
      pixels[i] = (foretold(pixels, i, x, y, width) + difference) & 4095;
    }
  }
  return pixels;
}

function foretold(pixels, i, x, y, width) {
  if (y === 0) return x === 0 ? 0 : pixels[i - 1];
  if (x === 0) return pixels[i - width];
  const left = pixels[i - 1];
  const up = pixels[i - width];
  const corner = pixels[i - width - 1];
  const low = Math.min(left, up);
  const high = Math.max(left, up);
  if (corner >= high) return low;
  if (corner <= low) return high;
  return left + up - corner;
}

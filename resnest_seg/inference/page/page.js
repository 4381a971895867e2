// Labels photos by the server that this page comes from: GET model, POST segment (see resnest_seg/inference/http_server.py).
// Every text of the server, of a file's name or of a class goes to the page as text, never as HTML.

const LONGEST = 1600; // pixels of the canvas; larger photos are drawn scaled, so that the page stays responsive
const SMALL = 800; // smaller photos are magnified by a whole number up to this length, or 16 times

const GONE = "The server does not answer. Is it still running?";

const find = id => document.getElementById(id);
const picture = find("picture"), context = picture.getContext("2d");

let model = null, introduced = ""; // what the server says of itself, and the same as text
let shown = null; // the photo on the canvas, see label()
let current = new AbortController(); // ends what is on its way for a photo when another one comes
let latest = null; // the file that was tried last
let live = null; // the stream of the camera, while its frames are labelled
const hidden = new Set(); // ids of classes that are not painted, kept from photo to photo
const rows = new Map(); // id of a class -> its row in the list

// ---- the server

// Asked for each photo anew: it may be another server by now, with another model.
async function introduce() {
  let text;
  try {
    const answer = await fetch("model");
    if (!answer.ok) throw new Failure(await reason(answer), true);
    text = await answer.text();
  } catch (problem) {
    throw problem instanceof TypeError ? new Failure(GONE, true) : problem;
  }
  if (text === introduced) return;
  introduced = text;
  model = JSON.parse(text);
  forget();
  hidden.clear();
  if (model.task === "binary") hidden.add(0); // the background, as in overlays
  rows.clear();
  find("classes").replaceChildren();
  find("model").textContent = introduction();
  const types = model.types.filter(type => type.startsWith("image/"));
  find("file").accept = [...types, ...(types.includes("image/tiff") ? [".tif", ".tiff"] : [])].join();
  find("camera-choice").hidden = model.bands || !navigator.mediaDevices?.getUserMedia;
}

function introduction() {
  const kinds = model.types.filter(type => type.startsWith("image/")).map(type => type.slice(6).toUpperCase());
  const names = { JPEG: "JPEG", PNG: "PNG", WEBP: "WebP", TIFF: "TIFF" };
  const files = `It takes ${kinds.map(kind => names[kind] ?? kind).join(", ")} files`;
  const bands = !model.bands ? "" : Array.isArray(model.bands) ? ` with the bands ${model.bands.join(", ")}`
                                                               : ` of ${model.channels} bands`;
  const limits = `of at most ${size(model.max_bytes)} and ${Number((model.max_pixels / 1e6).toPrecision(3))} megapixels`;
  const preview = model.bands ? " No browser shows files of many bands: the picture is then the server's." : "";
  const classes = `${model.classes.length} ${model.task === "multilabel" ? "labels, any of them at a pixel" : "classes"}`;
  return `${[model.description, model.protocol && `protocol ${model.protocol}`, classes].filter(Boolean).join("; ")}. ` +
         `${files}${bands}${bands && ","} ${limits}.${preview}`;
}

function size(bytes) {
  return bytes < 1 << 20 ? `${Math.ceil(bytes / 1024)} KiB` : `${Number((bytes / (1 << 20)).toPrecision(3))} MiB`;
}

class Failure extends Error {
  constructor(message, again = false) {
    super(message);
    this.again = again; // it may be otherwise in a moment
  }
}

async function reason(answer) {
  const found = await answer.json().catch(() => ({}));
  return String(found.error ?? `the server answers ${answer.status} ${answer.statusText}.`);
}

// Of a file that is too large, no more is sent than the server needs to see that, so that it can say so.
async function ask(query, file, signal) {
  const body = file.size > model.max_bytes ? file.slice(0, model.max_bytes + 1) : file;
  try {
    const answer = await fetch(`segment?${query}`,
      { method: "POST", body, signal, headers: { "Content-Type": "application/octet-stream" } });
    if (!answer.ok) throw new Failure(await reason(answer), answer.status === 503);
    return { content: await answer.blob(), timing: answer.headers.get("Server-Timing") ?? "" };
  } catch (problem) {
    if (!(problem instanceof TypeError)) throw problem; // it has been said, or another photo came
    const there = await file.slice(0, 1).arrayBuffer().then(() => true, () => false);
    throw there ? new Failure(GONE, true)
                : new Failure("The file cannot be read: it is a folder, or was moved or changed meanwhile.");
  }
}

// ---- one photo

async function label(file, { frame = false } = {}) {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  latest = file;
  if (!frame) say(`Labelling ${file.name} ...`);
  try {
    if (!frame) await introduce();
    const found = await labelled(file, signal);
    signal.throwIfAborted();
    shown = found;
    find("result").hidden = false;
    list(frame);
    describe();
    paint();
    await outline(signal);
    if (!frame) say(`${file.name} is labelled: ${summary()}.`);
  } catch (problem) {
    if (signal.aborted) return;
    fail(`${file.name}: ${problem.message}`, problem.again);
    if (shown?.signal !== signal) forget(); // else it is shown, and only its outlines are missing
  }
}

function forget() {
  find("result").hidden = true;
  shown = null;
}

async function labelled(file, signal) {
  const began = performance.now();
  const { content, timing } = await ask("output=labels", file, signal);
  const seconds = performance.now() - began;
  const labels = await decodePng(content);
  const certain = !model.bands && !await mayBeTurned(file);
  let photo = certain ? await createImageBitmap(file).catch(() => null) : null;
  const own = photo !== null && photo.width === labels.width && photo.height === labels.height;
  if (!own) // browsers do not show it, or maybe turned otherwise
    photo = await createImageBitmap((await ask("output=overlay&alpha=0", file, signal)).content);
  const longest = Math.max(labels.width, labels.height);
  const scale = Math.min(LONGEST / longest, Math.min(Math.max(Math.floor(SMALL / longest), 1), 16));
  const width = Math.max(Math.round(labels.width * scale), 1), height = Math.max(Math.round(labels.height * scale), 1);
  const scene = new OffscreenCanvas(width, height), pen = scene.getContext("2d");
  pen.imageSmoothingEnabled = scale < 1;
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white"; // under what is transparent, as the server does it
  pen.fillRect(0, 0, width, height);
  pen.drawImage(photo, 0, 0, labels.width, labels.height, 0, 0, width, height); // without the overlay's legend
  photo.close();
  return { file, content, labels, own, scene, layer: new OffscreenCanvas(width, height), signal, outlines: null,
           shares: shares(labels), timing: duration(seconds, timing) };
}

// Whether it is a WebP with EXIF data: its orientation is heeded by the server, not by Chromium 150. That of JPEG and PNG is.
async function mayBeTurned(file) {
  const head = new Uint8Array(await file.slice(0, 21).arrayBuffer());
  return String.fromCharCode(...head.subarray(8, 16)) === "WEBPVP8X" && (head[20] & 8) !== 0;
}

// An 8- or 16-bit PNG of one channel, as numbers: a canvas has colours only, of which two classes may share one.
async function decodePng(content) {
  const bytes = new Uint8Array(await content.arrayBuffer()), view = new DataView(bytes.buffer);
  const width = view.getUint32(16), height = view.getUint32(20), step = view.getUint8(24) / 8, packed = [];
  for (let place = 8; place < bytes.length; place += view.getUint32(place) + 12)
    if (view.getUint32(place + 4) === 0x49444154) // IDAT
      packed.push(bytes.subarray(place + 8, place + 8 + view.getUint32(place)));
  const stream = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const row = width * step, plain = new Uint8Array(row * height);
  for (let y = 0; y < height; y++)
    unfilter(raw.subarray(y * (row + 1), (y + 1) * (row + 1)), plain, y * row, row, step);
  if (step === 1) return { width, height, values: plain };
  const values = new Uint16Array(width * height);
  for (let at = 0; at < values.length; at++) values[at] = plain[2 * at] << 8 | plain[2 * at + 1];
  return { width, height, values };
}

// One row of a PNG: its first byte is the filter, the others are differences from a guess (PNG specification, 9.2).
function unfilter(from, to, start, row, step) {
  for (let x = 0, at = start; x < row; x++, at++) {
    const left = x < step ? 0 : to[at - step], up = start ? to[at - row] : 0;
    let guess = 0;
    if (from[0] === 1) guess = left;
    else if (from[0] === 2) guess = up;
    else if (from[0] === 3) guess = (left + up) >> 1;
    else if (from[0] === 4) {
      const corner = start && x >= step ? to[at - row - step] : 0, sum = left + up - corner;
      const [a, b, c] = [Math.abs(sum - left), Math.abs(sum - up), Math.abs(sum - corner)];
      guess = a <= b && a <= c ? left : b <= c ? up : corner;
    }
    to[at] = from[x + 1] + guess;
  }
}

// Ids of the classes that a value of the labels stands for: one, or those of the bits; none where it is ignored.
function meaning(value) {
  if (model.task !== "multilabel") {
    const found = model.classes.findIndex(one => one.raw_id === value);
    if (found < 0 && value !== model.ignored_raw_id)
      throw new Error(`The server gives the label ${value}, which is none of its classes.`);
    return found < 0 ? [] : [found];
  }
  return model.classes.map((_, bit) => bit).filter(bit => value >> bit & 1); // bit 15, of ignored pixels, is no label's
}

// Present classes, largest first: [{id, count}], and the classes of every value that occurs.
function shares({ values }) {
  const counts = new Uint32Array(values instanceof Uint8Array ? 256 : 65536), classes = new Map(), meanings = new Map();
  for (const value of values) counts[value]++;
  counts.forEach((count, value) => {
    if (!count) return;
    meanings.set(value, meaning(value));
    for (const id of meanings.get(value)) classes.set(id, (classes.get(id) ?? 0) + count);
  });
  const present = [...classes].map(([id, count]) => ({ id, count })).sort((a, b) => b.count - a.count || a.id - b.id);
  return { present, meanings };
}

function duration(all, timing) {
  const steps = [...timing.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, time]) => [name, Number(time)]);
  const names = { queue: "waiting", decode: "decoding", model: "model", encode: "encoding" };
  const server = steps.reduce((sum, [, time]) => sum + time, 0);
  const parts = steps.map(([name, time]) => `${names[name] ?? name} ${time.toFixed(0)}`).join(", ");
  return `${all.toFixed(0)} ms in all` +
         (steps.length ? `: server ${server.toFixed(0)} ms (${parts}), transfer ${Math.max(all - server, 0).toFixed(0)} ms` : "");
}

// ---- what is shown

function describe() {
  const { labels, file } = shown;
  find("name").textContent = file.name;
  find("size").textContent = `${labels.width} × ${labels.height} pixels`;
  find("under").textContent = "";
  find("note").hidden = shown.own;
  find("note").textContent = "This browser does not show the file as the model sees it: the picture is the server's.";
  find("timing").textContent = shown.timing;
  picture.width = shown.scene.width;
  picture.height = shown.scene.height;
  picture.setAttribute("aria-label", sentence(`${file.name} with its labels: ${summary()}`));
}

function share({ count }) {
  return `${(100 * count / shown.labels.values.length).toFixed(1)}%`;
}

function summary() {
  const first = shown.shares.present.slice(0, 5).map(one => `${model.classes[one.id].name} ${share(one)}`);
  const more = shown.shares.present.length - first.length;
  return `${first.join(", ") || "no class"}${more > 0 ? ` and ${more} more` : ""}`;
}

// The list of classes. Rows that stay are kept, and in the order that they have while frames come: one may have the focus.
function list(frame) {
  const { present } = shown.shares, ids = new Set(present.map(one => one.id));
  for (const [id, row] of rows) if (!ids.has(id)) row.remove();
  for (const one of present) {
    if (!rows.has(one.id)) rows.set(one.id, makeRow(one.id));
    const row = rows.get(one.id);
    row.querySelector(".share").textContent = share(one);
    row.querySelector("input").checked = !hidden.has(one.id);
    if (!frame || !row.isConnected) find("classes").append(row);
  }
}

function makeRow(id) {
  const row = document.createElement("li"), text = document.createElement("label");
  const box = document.createElement("input"), colour = document.createElement("span");
  const name = document.createElement("bdi"), part = document.createElement("span");
  box.type = "checkbox";
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(id);
    else hidden.add(id);
    paint();
  });
  colour.className = "colour";
  colour.style.backgroundColor = `rgb(${model.classes[id].color.join()})`;
  name.textContent = model.classes[id].name;
  part.className = "share";
  text.append(box, colour, name, part);
  row.append(text);
  return row;
}

// The layer of labels in their colours, as large as the canvas; the mean colour where several labels are present.
function paint() {
  const { labels, layer, shares: { meanings } } = shown;
  const colours = new Uint32Array(labels.values instanceof Uint8Array ? 256 : 65536); // red is the lowest byte
  for (const [value, ids] of meanings) {
    const seen = ids.filter(id => !hidden.has(id));
    const [red, green, blue] = [0, 1, 2].map(channel =>
      Math.round(seen.reduce((sum, id) => sum + model.classes[id].color[channel], 0) / seen.length));
    colours[value] = seen.length ? (255 << 24 | blue << 16 | green << 8 | red) >>> 0 : 0;
  }
  const { width, height } = layer, columns = Uint32Array.from({ length: width }, (_, x) => (x + 0.5) * labels.width / width);
  const image = new ImageData(width, height), out = new Uint32Array(image.data.buffer);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor((y + 0.5) * labels.height / height) * labels.width;
    for (let x = 0; x < width; x++, at++) out[at] = colours[labels.values[row + columns[x]]];
  }
  layer.getContext("2d").putImageData(image, 0, 0);
  draw();
}

function draw() {
  if (!shown) return;
  context.drawImage(shown.scene, 0, 0);
  context.globalAlpha = find("opacity").value / 100;
  context.drawImage(shown.layer, 0, 0);
  context.globalAlpha = 1;
  if (!find("outlines").checked) return;
  for (const { id, path } of shown.outlines?.paths ?? []) {
    if (hidden.has(id)) continue;
    for (const [width, colour] of [[3, "black"], [1.5, `rgb(${model.classes[id].color.join()})`]]) {
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke(path);
    }
  }
}

// The server's polygons, which it is asked for once a photo.
async function outline(signal) {
  if (shown && find("outlines").checked) await polygons(signal);
  draw();
}

async function polygons(signal) {
  const photo = shown;
  if (photo.outlines) return photo.outlines.content;
  const { content } = await ask("output=polygons", photo.file, signal);
  const { features } = JSON.parse(await content.text());
  const x = photo.scene.width / photo.labels.width, y = photo.scene.height / photo.labels.height;
  const paths = features.map(({ properties, geometry }) => {
    const path = new Path2D();
    for (const ring of geometry.coordinates.flat()) {
      ring.forEach((corner, at) => path[at ? "lineTo" : "moveTo"](corner[0] * x, corner[1] * y));
      path.closePath();
    }
    return { id: properties.train_id, path };
  });
  photo.outlines = { content, paths };
  return content;
}

// ---- messages

// A sentence with names in it, whose writing direction is not to be that of the rest.
function sentence(text) {
  return text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "");
}

function say(text) {
  find("status").textContent = sentence(text);
  find("error").textContent = "";
  find("again").hidden = true;
}

function fail(text, again = false) {
  say("");
  find("error").textContent = sentence(text);
  find("again").hidden = !again;
  stopCamera();
}

// What a control asks of the server for the photo that is shown.
async function act(doing, done, work) {
  const photo = shown;
  if (!photo) return;
  say(doing);
  try {
    await work(photo);
    if (!photo.signal.aborted) say(done);
  } catch (problem) {
    if (!photo.signal.aborted) fail(`${photo.file.name}: ${problem.message}`);
  }
}

function save(content, { file }, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = file.name.replace(/\.[^.]*$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ---- the camera

function stopCamera() {
  live = null;
  find("camera").checked = false;
}

async function film() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch (problem) {
    return fail(`The camera cannot be used: ${problem.message || problem.name}. Allow it in the browser, or choose a photo.`);
  }
  live = find("camera").checked ? stream : null; // it may have been unticked while the browser asked
  const video = document.createElement("video");
  video.muted = video.playsInline = true;
  video.srcObject = stream;
  try {
    await video.play();
    say("The camera's frames are labelled one after the other.");
    while (live === stream && stream.active) {
      await new Promise(requestAnimationFrame); // which waits as long as the page is not seen
      const frame = new OffscreenCanvas(video.videoWidth, video.videoHeight);
      frame.getContext("2d").drawImage(video, 0, 0);
      const content = await frame.convertToBlob({ type: "image/jpeg", quality: 0.92 });
      if (live === stream) await label(new File([content], "camera.jpg"), { frame: true });
    }
  } catch (problem) {
    fail(`The camera has stopped: ${problem.message}`);
  } finally {
    for (const track of stream.getTracks()) track.stop();
  }
}

// ---- controls

function take(files, ending = "") {
  if (ending) find("file").value = "";
  if (files.length) {
    stopCamera();
    label(files[0]);
  } else if (ending) {
    fail(ending);
  }
}

find("file").addEventListener("click", () => { find("file").value = ""; }); // so that the same file can be chosen again
find("file").addEventListener("change", () => take([...find("file").files]));
document.addEventListener("paste", event => take([...event.clipboardData.files], "What was pasted is no photo."));
document.addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", event => event.relatedTarget ?? document.body.classList.remove("over"));
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("over");
  take([...event.dataTransfer.files], "What was dropped is no file.");
});
find("again").addEventListener("click", () => latest ? label(latest) : start());
find("camera").addEventListener("change", () => find("camera").checked ? film() : stopCamera());
find("opacity").addEventListener("input", () => {
  find("percent").textContent = `${find("opacity").value} %`;
  draw();
});
find("outlines").addEventListener("change", () => {
  if (find("outlines").checked) act("Fetching the outlines ...", "", photo => outline(photo.signal));
  else draw();
});
for (const [button, all] of [["all", true], ["none", false]])
  find(button).addEventListener("click", () => {
    if (!shown) return;
    for (const { id } of shown.shares.present) hidden[all ? "delete" : "add"](id);
    list(true);
    paint();
  });
find("save-labels").addEventListener("click", () => shown && save(shown.content, shown, "_labels.png"));
find("save-overlay").addEventListener("click", () => act("Fetching the overlay ...", "The overlay is downloaded.", async photo =>
  save((await ask(`output=overlay&alpha=${find("opacity").value / 100}`, photo.file, photo.signal)).content, photo, "_overlay.png")));
find("save-outlines").addEventListener("click", () => act("Fetching the outlines ...", "The outlines are downloaded.",
  async photo => save(await polygons(photo.signal), photo, ".geojson")));
picture.addEventListener("pointermove", event => {
  if (!shown) return;
  const { labels, shares: { meanings } } = shown, box = picture.getBoundingClientRect();
  const place = (at, start, length, count) => Math.min(Math.max(Math.floor((at - start) / length * count), 0), count - 1);
  const x = place(event.clientX, box.left, box.width, labels.width), y = place(event.clientY, box.top, box.height, labels.height);
  const names = meanings.get(labels.values[y * labels.width + x]).map(id => model.classes[id].name);
  find("under").textContent = sentence(`${names.join(", ") || "no class"} at ${x}, ${y}`);
});
picture.addEventListener("pointerleave", () => { find("under").textContent = ""; });

function start() {
  say("");
  introduce().catch(problem => fail(problem.message, problem.again));
}

start();

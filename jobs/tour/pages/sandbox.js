"use strict";
// The sandbox of the tour. `convolve`, `maxPool` and `avgPool` compute what the steps of these names compute on uint8:
// sums in float32, half rounded to even, values outside 0..255 cut off.

const sandbox = (() => {
  const MOST_PX = 320;

  function outside(at, length, border) {
    // Where a border takes the value of a place outside from; -1 for zero.
    if (at >= 0 && at < length) return at;
    if (border === "zeros") return -1;
    if (border === "replicate") return at < 0 ? 0 : length - 1;
    if (length === 1) return 0;
    const skip = border === "reflect_101" ? 1 : 0;
    while (at < 0 || at >= length) at = at < 0 ? -at - 1 + skip : 2 * length - 1 - at - skip;
    return at;
  }

  function rounded(value) {
    const below = Math.floor(value), rest = value - below;
    const whole = rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below;
    return Math.min(255, Math.max(0, whole));
  }

  function spread(kernel, dilation, normalize) {
    const total = kernel.flat().reduce((sum, weight) => sum + weight, 0);
    if (normalize && Math.abs(total) < 1e-9) throw new Error("the weights add up to 0: they cannot be divided by their sum");
    const rows = dilation * (kernel.length - 1) + 1, columns = dilation * (kernel[0].length - 1) + 1;
    const wide = Array.from({ length: rows }, () => new Array(columns).fill(0));
    kernel.forEach((row, y) => row.forEach((weight, x) => {
      wide[y * dilation][x * dilation] = Math.fround(normalize ? weight / total : weight);
    }));
    return wide;
  }

  function geometry(height, width, settings) {
    const weights = spread(settings.kernel, settings.dilation ?? 1, settings.normalize ?? false);
    const rows = weights.length, columns = weights[0].length, padding = settings.padding ?? "same";
    const same = padding === "same", pad = typeof padding === "number" ? padding : 0;
    const full = [height, width].map((side, axis) => same ? side : side + 2 * pad - [rows, columns][axis] + 1);
    if (Math.min(...full) < 1) throw new Error(`a kernel of ${columns} x ${rows} pixels does not fit into a picture of ${width} x ${height}`);
    const stride = settings.stride ?? 1;
    return {
      weights, stride, border: settings.border ?? "reflect_101",
      top: same ? (rows - 1) >> 1 : pad, left: same ? (columns - 1) >> 1 : pad,
      height: Math.floor((full[0] - 1) / stride) + 1, width: Math.floor((full[1] - 1) / stride) + 1,
    };
  }

  // picture: {data, height, width, channels}, rows first, channels last.
  function convolve(picture, settings) {
    const at = geometry(picture.height, picture.width, settings);
    const { channels } = picture, data = new Uint8ClampedArray(at.height * at.width * channels);
    const taps = [];
    at.weights.forEach((row, y) => row.forEach((weight, x) => { if (weight !== 0) taps.push([y - at.top, x - at.left, weight]); }));
    const start = Math.fround((settings.offset ?? 0) * 255);
    const ys = new Map(), xs = new Map();
    const lookup = (cache, place, length) => {
      if (!cache.has(place)) cache.set(place, outside(place, length, at.border));
      return cache.get(place);
    };
    let target = 0;
    for (let y = 0; y < at.height; y++) {
      for (let x = 0; x < at.width; x++) {
        for (let channel = 0; channel < channels; channel++) {
          let sum = start;
          for (const [dy, dx, weight] of taps) {
            const row = lookup(ys, y * at.stride + dy, picture.height), column = lookup(xs, x * at.stride + dx, picture.width);
            if (row < 0 || column < 0) continue;
            sum = Math.fround(sum + weight * picture.data[(row * picture.width + column) * channels + channel]);
          }
          data[target++] = rounded(sum);
        }
      }
    }
    return { data, height: at.height, width: at.width, channels };
  }

  function pooled(picture, size, stride, combine) {
    const height = Math.floor((picture.height - size) / stride) + 1, width = Math.floor((picture.width - size) / stride) + 1;
    if (height < 1 || width < 1) throw new Error(`a window of ${size} x ${size} pixels does not fit into a picture of ${picture.width} x ${picture.height}`);
    const { channels } = picture, data = new Uint8ClampedArray(height * width * channels);
    let target = 0;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) for (let channel = 0; channel < channels; channel++) {
      const values = [];
      for (let dy = 0; dy < size; dy++) for (let dx = 0; dx < size; dx++) {
        values.push(picture.data[((y * stride + dy) * picture.width + x * stride + dx) * channels + channel]);
      }
      data[target++] = combine(values);
    }
    return { data, height, width, channels };
  }

  const maxPool = (picture, size, stride = size) => pooled(picture, size, stride, (values) => Math.max(...values));
  const avgPool = (picture, size, stride = size) =>
    pooled(picture, size, stride, (values) => rounded(values.reduce((sum, value) => sum + value, 0) / values.length));

  function grey(picture) {
    if (picture.channels === 1) return picture;
    const data = new Uint8ClampedArray(picture.height * picture.width);
    for (let at = 0; at < data.length; at++) {
      const [red, green, blue] = [0, 1, 2].map((channel) => picture.data[3 * at + channel]);
      data[at] = (red * 9798 + green * 19235 + blue * 3735 + 16384) >> 15;
    }
    return { ...picture, data, channels: 1 };
  }

  return { convolve, maxPool, avgPool, grey, geometry, outside, MOST_PX };
})();

(() => {
  const by = (id) => document.getElementById(id);
  if (!by("sandbox")) return;
  const PRESETS = {
    identity: [[0, 0, 0], [0, 1, 0], [0, 0, 0]], mean: [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    Gaussian: [[1, 2, 1], [2, 4, 2], [1, 2, 1]], sharpen: [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "Sobel, x": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "Sobel, y": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    Laplacian: [[0, 1, 0], [1, -4, 1], [0, 1, 0]], emboss: [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]],
  };
  let original = null, input = null, convolved = null, output = null;

  function settings() {
    const kind = by("padding").value;
    return {
      kernel: [...by("kernel").rows].map((row) => [...row.querySelectorAll("input")].map((field) => Number(field.value) || 0)),
      normalize: by("normalize").checked, stride: whole("stride"), dilation: whole("dilation"),
      padding: kind === "pixels" ? whole("pixels") : kind, border: by("border").value, offset: by("offset").checked ? 0.5 : 0,
    };
  }

  function whole(id) {
    const field = by(id), value = Math.round(Number(field.value));
    return Math.min(Number(field.max), Math.max(Number(field.min), Number.isFinite(value) ? value : Number(field.min)));
  }

  function fillKernel(kernel) {
    const table = by("kernel");
    table.replaceChildren();
    for (const weights of kernel) {
      const row = table.insertRow();
      for (const weight of weights) {
        const field = Object.assign(document.createElement("input"), { type: "number", step: "any", value: weight });
        field.setAttribute("aria-label", `weight, row ${table.rows.length}, column ${row.cells.length + 1}`);
        row.insertCell().append(field);
      }
    }
    by("side").value = String(kernel.length);
  }

  function draw(canvas, picture) {
    canvas.width = picture.width;
    canvas.height = picture.height;
    const image = new ImageData(picture.width, picture.height);
    for (let at = 0; at < picture.width * picture.height; at++) {
      for (let channel = 0; channel < 3; channel++) image.data[4 * at + channel] = picture.data[at * picture.channels + (picture.channels === 1 ? 0 : channel)];
      image.data[4 * at + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.style.width = `${picture.width * Math.max(1, Math.floor(300 / Math.max(picture.width, picture.height)))}px`;
  }

  function text(one) {
    const parts = [`kernel=[${one.kernel.map((row) => `[${row.join(", ")}]`).join(", ")}]`];
    if (one.stride !== 1) parts.push(`stride=${one.stride}`);
    if (one.padding !== "same") parts.push(`padding=${typeof one.padding === "number" ? one.padding : `"${one.padding}"`}`);
    if (one.dilation !== 1) parts.push(`dilation=${one.dilation}`);
    if (one.normalize) parts.push("normalize=True");
    if (padded(one) && one.border !== "reflect_101") parts.push(`border="${one.border}"`);
    if (one.offset) parts.push(`offset=${one.offset}`);
    const pool = by("pool").value, steps = [`convolve(${parts.join(", ")})`];
    if (by("colour").value === "grey") steps.unshift("grayscale");
    if (pool !== "none") steps.push(`${pool}(size=${whole("pool-size")}, stride=${whole("pool-stride")})`);
    return steps.join(" | ");
  }

  const padded = (one) => one.padding !== "valid" && one.padding !== 0;

  function update() {
    if (!original) return;
    const one = settings(), pool = by("pool").value;
    by("pixels").disabled = by("padding").value !== "pixels";
    by("border").disabled = !padded(one);
    by("pool-size").disabled = by("pool-stride").disabled = pool === "none";
    by("worked").replaceChildren();
    try {
      input = by("colour").value === "grey" ? sandbox.grey(original) : original;
      convolved = sandbox.convolve(input, one);
      output = pool === "none" ? convolved : sandbox[pool === "max_pool" ? "maxPool" : "avgPool"](convolved, whole("pool-size"), whole("pool-stride"));
    } catch (error) {
      output = null;
      by("message").textContent = `This does not work: ${error.message}.`;
      return;
    }
    draw(by("input"), input);
    draw(by("output"), output);
    const sizes = [input, convolved, ...(output === convolved ? [] : [output])].map((picture) => `${picture.width} x ${picture.height}`);
    by("message").textContent = `${sizes.join(" \u2192 ")}, ${input.channels === 1 ? "one channel" : "three channels, each filtered by itself"}.`;
    by("call").textContent = text(one);
  }

  function work(event) {
    // The window of the pixel of the result under the pointer, multiplied out.
    if (!output || output !== convolved) return;
    const canvas = by("output"), box = canvas.getBoundingClientRect(), one = settings();
    const x = Math.min(output.width - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * output.width)));
    const y = Math.min(output.height - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * output.height)));
    const at = sandbox.geometry(input.height, input.width, one), parts = [];
    at.weights.forEach((row, dy) => row.forEach((weight, dx) => {
      if (weight === 0) return;
      const place = [y * at.stride + dy - at.top, x * at.stride + dx - at.left];
      const source = [sandbox.outside(place[0], input.height, at.border), sandbox.outside(place[1], input.width, at.border)];
      const value = Math.min(...source) < 0 ? 0 : input.data[(source[0] * input.width + source[1]) * input.channels];
      parts.push(`${value} \u00d7 ${Number(weight.toPrecision(4))}`);
    }));
    const shown = parts.length > 25 ? [...parts.slice(0, 25), `and ${parts.length - 25} more`] : parts;
    const half = one.offset ? [`${255 * one.offset}`] : [];
    by("worked").textContent = `Row ${y}, column ${x}${input.channels > 1 ? " (red)" : ""}: ${[...half, ...shown].join(" + ") || "0"} = ${output.data[(y * output.width + x) * output.channels]} after rounding, from 0 to 255`;
    draw(by("input"), input);
    const context = by("input").getContext("2d");
    context.strokeStyle = "#ff3b30";
    context.strokeRect(x * at.stride - at.left + 0.5, y * at.stride - at.top + 0.5, at.weights[0].length - 1 || 1, at.weights.length - 1 || 1);
  }

  async function read(blob) {
    try {
      const bitmap = await createImageBitmap(blob);
      const scale = Math.min(1, sandbox.MOST_PX / Math.max(bitmap.width, bitmap.height));
      const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
      const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
      context.fillStyle = "#fff";
      context.fillRect(0, 0, width, height);
      context.drawImage(bitmap, 0, 0, width, height);
      const pixels = context.getImageData(0, 0, width, height).data, data = new Uint8ClampedArray(width * height * 3);
      for (let at = 0; at < width * height; at++) for (let channel = 0; channel < 3; channel++) data[3 * at + channel] = pixels[4 * at + channel];
      original = { data, height, width, channels: 3 };
      update();
    } catch {
      by("message").textContent = "The browser cannot read this file as a picture.";
    }
  }

  for (const name of Object.keys(PRESETS)) by("preset").append(new Option(name));
  by("preset").addEventListener("change", () => {
    fillKernel(PRESETS[by("preset").value]);
    const weights = PRESETS[by("preset").value].flat(), total = weights.reduce((sum, weight) => sum + weight, 0);
    by("normalize").checked = total > 1;
    by("offset").checked = total === 0;
    update();
  });
  by("side").addEventListener("change", () => {
    const side = Number(by("side").value), old = settings().kernel, shift = Math.floor((side - 1) / 2) - Math.floor((old.length - 1) / 2);
    fillKernel(Array.from({ length: side }, (_, y) => Array.from({ length: side }, (_, x) => old[y - shift]?.[x - shift] ?? 0)));
    update();
  });
  by("sandbox").addEventListener("input", (event) => { if (event.target.id !== "file") update(); });
  by("file").addEventListener("change", () => { if (by("file").files[0]) read(by("file").files[0]); });
  by("sandbox").addEventListener("dragover", (event) => event.preventDefault());
  by("sandbox").addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) read(event.dataTransfer.files[0]);
  });
  by("output").addEventListener("pointermove", work);
  fillKernel(PRESETS["Sobel, x"]);
  by("preset").value = "Sobel, x";
  by("offset").checked = true;
  const bytes = Uint8Array.from(atob(by("first-picture").src.split(",")[1]), (char) => char.charCodeAt(0));
  read(new Blob([bytes], { type: "image/png" }));
  sandbox.state = () => ({ original, input, output, settings: settings(), call: by("call").textContent });
})();

"use strict";
// The script of a report page: values under the pointer, toggles, orders, and labels painted onto photos.
(() => {
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const number = (value) => String(Number(value.toPrecision(4)));
  const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "-");
  const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });

  // Rows are sorted by numbers where they have some, else by text; what is missing comes last.
  const compared = (a, b, up) => {
    if (a === b) return 0;
    if (a === null || b === null) return a === null ? 1 : -1;
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return up ? order : -order;
  };

  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, place) => {
      const key = (row) => {
        const cell = row.cells[place];
        if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
        return cell.classList.contains("number") ? null : cell.textContent;
      };
      head.querySelector("button").addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = Array.from(table.tBodies[0].rows).sort((a, b) => compared(key(a), key(b), up));
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Lines: the values at the place that the pointer or the arrow keys choose.
  for (const figure of all("figure.lines")) {
    const svg = figure.querySelector("svg[data-plot]");
    const [left, top, right, bottom, x0, x1, y0, y1] = svg.dataset.plot.split(" ").map(Number);
    const log = svg.dataset.log !== undefined;
    const readout = figure.querySelector(".readout"), hint = readout.textContent;
    const guide = svg.querySelector(".guide"), width = svg.viewBox.baseVal.width;
    const series = all("path.series", svg).map((path) => ({
      path,
      name: path.dataset.name,
      points: Array.from(path.getAttribute("d").matchAll(/[ML]([-\d.e]+),([-\d.e]+)/g), (m) => [Number(m[1]), Number(m[2])]),
    }));
    const shown = () => series.filter((one) => !one.path.classList.contains("off"));
    const xValue = (x) => x0 + ((x - left) / (right - left)) * (x1 - x0);
    const yValue = (y) => {
      const share = (bottom - y) / (bottom - top);
      return log ? y0 * (y1 / y0) ** share : y0 + share * (y1 - y0);
    };
    let place = null;
    const places = () => Array.from(new Set(shown().flatMap((one) => one.points.map((point) => point[0])))).sort((a, b) => a - b);
    const nearest = (values, x) => values.reduce((best, value) => (Math.abs(value - x) < Math.abs(best - x) ? value : best));
    const show = (x) => {
      place = x;
      guide.setAttribute("x1", x);
      guide.setAttribute("x2", x);
      guide.classList.remove("off");
      const values = shown().filter((one) => one.points.length).map((one) => {
        const at = nearest(one.points.map((point) => point[0]), x);
        const y = one.points.find((point) => point[0] === at)[1];
        const elsewhere = Math.abs(at - x) > 0.5 ? ` (at ${number(xValue(at))})` : "";
        return `${one.name} ${number(yValue(y))}${elsewhere}`;
      });
      readout.textContent = `${svg.dataset.axis} ${number(xValue(x))}: ${values.join(", ")}`;
    };
    const leave = () => {
      place = null;
      guide.classList.add("off");
      readout.textContent = hint;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), known = places();
      if (known.length) show(nearest(known, ((event.clientX - box.left) / box.width) * width));
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const known = places(), at = place === null ? -1 : known.indexOf(nearest(known, place));
      const next = { ArrowRight: at + 1, ArrowLeft: at < 0 ? known.length - 1 : at - 1, Home: 0, End: known.length - 1 }[event.key];
      if (next === undefined || !known.length) return;
      event.preventDefault();
      show(known[Math.min(Math.max(next, 0), known.length - 1)]);
    });
    const boxes = all("input[data-series]", figure);
    const apply = () => boxes.forEach((box) => {
      all(`[data-line="${box.dataset.series}"]`, svg).forEach((path) => path.classList.toggle("off", !box.checked));
    });
    boxes.forEach((box) => box.addEventListener("change", apply));
    for (const [name, on] of [["every", true], ["none", false]]) {
      all(`button.${name}`, figure).forEach((button) => button.addEventListener("click", () => {
        boxes.forEach((box) => (box.checked = on));
        apply();
      }));
    }
    apply();
  }

  // Confusion matrices: the two ways of a share, and the cell that the pointer or the arrow keys choose.
  for (const figure of all("figure.matrix")) {
    const { names, counts } = data(figure.dataset.from)[figure.dataset.name];
    const rows = counts.map((row) => row.reduce((a, b) => a + b, 0));
    const columns = names.map((_, column) => counts.reduce((sum, row) => sum + row[column], 0));
    const readout = figure.querySelector(".readout");
    const choose = () => all("input[type=radio]", figure).forEach((radio) => {
      all(`[data-way="${radio.value}"]`, figure).forEach((part) => part.classList.toggle("off", !radio.checked));
    });
    all("input[type=radio]", figure).forEach((radio) => radio.addEventListener("change", choose));
    choose();
    for (const svg of all("svg[data-grid]", figure)) {
      const [left, top, size] = svg.dataset.grid.split(" ").map(Number);
      const cursor = svg.querySelector(".cursor");
      let at = null;
      const show = (row, column) => {
        at = [row, column];
        cursor.setAttribute("x", left + column * size);
        cursor.setAttribute("y", top + row * size);
        cursor.classList.remove("off");
        const count = counts[row][column];
        readout.textContent = `truth ${names[row]}, predicted ${names[column]}: ${count.toLocaleString("en")} pixels, ` +
          `${percent(count, rows[row])} of the truth, ${percent(count, columns[column])} of the predicted`;
      };
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
        const column = Math.floor(((event.clientX - box.left) * scale - left) / size);
        const row = Math.floor(((event.clientY - box.top) * scale - top) / size);
        if (counts[row] && column >= 0 && column < names.length) show(row, column);
      });
      svg.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!step) return;
        event.preventDefault();
        const clamp = (value) => Math.min(Math.max(value, 0), names.length - 1);
        const [row, column] = at === null ? [0, 0] : [clamp(at[0] + step[0]), clamp(at[1] + step[1])];
        show(row, column);
        const area = svg.closest(".scroll");
        area.scrollLeft = Math.max(left + (column + 1) * size - area.clientWidth + 20, 0);
        area.scrollTop = Math.max(top + (row + 1) * size - area.clientHeight + 20, 0);
      });
    }
  }

  // Images: labels are read from the colours of the masks, and painted where the photo has been seen.
  const WRONG = [213, 94, 0], IGNORED = [128, 128, 128];
  const pixels = (picture, width, height) => {
    const canvas = make("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };
  const labelsOf = (picture) => {
    const key = new Map(), meanings = [];
    for (const part of picture.dataset.key.split(" ")) {
      const [code, text] = part.split(":");
      key.set(Number(code), meanings.length);
      meanings.push(text === "-" ? null : text === "" ? [] : text.split(".").map(Number));
    }
    const width = picture.naturalWidth, height = picture.naturalHeight, found = pixels(picture, width, height);
    const labels = new Uint8Array(width * height);
    for (let i = 0; i < labels.length; i++) {
      labels[i] = key.get((found[4 * i] << 16) | (found[4 * i + 1] << 8) | found[4 * i + 2]) ?? 0;
    }
    return { labels, meanings, width, height };
  };

  for (const gallery of all(".gallery")) {
    const { scores, values, tags, colors } = data(gallery.dataset.from);
    const find = (selector) => gallery.querySelector(selector);
    const grid = find(".cards"), status = find(".status"), slider = find(".opacity");
    const toggles = all("input.class", gallery);
    const cards = all(".card", gallery).map((article) => ({ article, place: Number(article.dataset.place), seen: false, ready: null }));
    let visible = new Set(), opacity = 0.6;

    const ready = async (card) => {
      const pictures = all("img", card.article);
      await Promise.all(pictures.map((picture) => picture.decode()));
      const photo = pictures.find((picture) => picture.className === "photo");
      const truthOf = pictures.find((picture) => picture.className === "truth");
      const width = photo.naturalWidth, height = photo.naturalHeight;
      const base = pixels(photo, width, height), truth = truthOf && labelsOf(truthOf);
      const panels = [];
      const grey = new Uint8ClampedArray(base.length); // under errors, so that no colour of the photo looks like one
      for (let i = 0; i < base.length; i += 4) {
        const light = 0.6 * (0.3 * base[i] + 0.59 * base[i + 1] + 0.11 * base[i + 2]) + 102;
        grey[i] = grey[i + 1] = grey[i + 2] = light;
      }
      const canvasFor = (alt, under, paint) => {
        const canvas = make("canvas");
        [canvas.width, canvas.height] = [width, height];
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", alt);
        panels.push({ context: canvas.getContext("2d"), under, paint });
        return canvas;
      };
      for (const picture of pictures.filter((one) => one !== photo)) {
        const mask = labelsOf(picture), figure = picture.closest("figure");
        picture.replaceWith(canvasFor(picture.alt, base, () => painted(mask)));
        if (!truth || picture === truthOf) continue;
        const name = `errors of ${figure.querySelector("figcaption").textContent}`;
        const beside = make("figure");
        beside.className = "panel";
        beside.append(canvasFor(`${name}, ${picture.alt}`, grey, () => errors(truth, mask)), make("figcaption", name));
        figure.after(beside);
      }
      return { width, height, panels };
    };
    const isOn = (label) => toggles[label] !== undefined && toggles[label].checked;
    const colour = (meaning) => {
      const on = (meaning || []).filter(isOn);
      return on.length ? [0, 1, 2].map((channel) => on.reduce((sum, label) => sum + colors[label][channel], 0) / on.length) : null;
    };
    // What is painted over pixel i: a colour, or null for the photo alone.
    const painted = (mask) => {
      const table = mask.meanings.map(colour);
      return (i) => table[mask.labels[i]];
    };
    const errors = (truth, mask) => {
      const names = (meaning) => (meaning === null ? "-" : meaning.join("."));
      const table = truth.meanings.map((one) => mask.meanings.map((other) => {
        if (one === null) return IGNORED;
        const asked = [...one, ...(other || [])];
        return names(one) !== names(other) && (asked.some(isOn) || !asked.length) ? WRONG : null;
      }));
      return (i) => table[truth.labels[i]][mask.labels[i]];
    };
    const draw = async (card) => {
      card.ready ??= ready(card);
      const { width, height, panels } = await card.ready;
      for (const { context, under, paint } of panels) {
        const image = context.createImageData(width, height), over = paint();
        for (let i = 0; i < width * height; i++) {
          const color = over(i), share = color ? opacity : 0;
          for (let channel = 0; channel < 3; channel++) {
            image.data[4 * i + channel] = under[4 * i + channel] * (1 - share) + (color ? color[channel] * share : 0);
          }
          image.data[4 * i + 3] = 255;
        }
        context.putImageData(image, 0, 0);
      }
      card.article.dataset.drawn = String(Number(card.article.dataset.drawn || 0) + 1);
    };
    let asked = false;
    const redraw = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        cards.filter((card) => visible.has(card.article)).forEach(draw);
      });
    };
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) visible.add(target);
        else visible.delete(target);
        if (isIntersecting) draw(cards.find((card) => card.article === target));
      }
    }, { rootMargin: "400px" });
    cards.forEach((card) => observer.observe(card.article));

    const arrange = () => {
      const score = find(".sort").value, up = find(".way").value === "up", group = find(".group").value;
      const value = (card) => (score === "" ? card.place : values[card.place][Number(score)]);
      const order = [...cards].sort((a, b) => compared(value(a), value(b), score === "" || up) || a.place - b.place);
      grid.append(...order.map((card) => card.article));
      let count = 0;
      for (const card of order) {
        card.article.hidden = group !== "" && !tags[card.place].includes(group);
        count += card.article.hidden ? 0 : 1;
        let line = card.article.querySelector(".value");
        if (!line) {
          line = make("p");
          line.className = "value";
          card.article.querySelector("p").after(line);
        }
        const found = score === "" ? null : value(card);
        line.textContent = score === "" ? "" : `${scores[Number(score)]}: ${found === null ? "not in this image" : number(found)}`;
      }
      const sorted = score === "" ? "as listed" : `by ${scores[Number(score)]}, ${up ? "lowest" : "highest"} first`;
      status.textContent = `${count} of ${cards.length} shown, ${sorted}`;
    };
    for (const name of [".sort", ".way", ".group"]) find(name).addEventListener("change", arrange);
    slider.addEventListener("input", () => {
      opacity = Number(slider.value) / 100;
      redraw();
    });
    toggles.forEach((toggle) => toggle.addEventListener("change", redraw));
    for (const [name, on] of [["every", true], ["none", false]]) {
      find(`button.${name}`).addEventListener("click", () => {
        toggles.forEach((toggle) => (toggle.checked = on));
        redraw();
      });
    }
    opacity = Number(slider.value) / 100; // a browser may keep what was set before a reload
    arrange();
  }
})();

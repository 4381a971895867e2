"use strict";
// Images that are ticked, and the list of them that can be copied and downloaded; a browser remembers it by the page.
(() => {
  const boxes = Array.from(document.querySelectorAll("input.mark"));
  const list = document.querySelector("textarea.list-of-marks");
  const count = document.querySelector(".count-of-marks");
  const button = (name) => document.querySelector(`button.${name}`);
  const key = `marks of ${list.dataset.page}`;
  const chosen = new Set();
  try {
    JSON.parse(localStorage.getItem(key) || "[]").forEach((name) => chosen.add(name));
  } catch {} // a browser may refuse to remember

  const show = () => {
    const known = Array.from(new Set(boxes.map((box) => box.value)));
    const names = known.filter((name) => chosen.has(name));
    for (const box of boxes) {
      box.checked = chosen.has(box.value);
      box.closest(".card").classList.toggle("chosen", box.checked);
    }
    list.value = names.map((name) => `${name}\n`).join("");
    count.textContent = `${names.length} of ${known.length} images are ticked`;
    button("download").disabled = button("untick").disabled = names.length === 0;
    try {
      localStorage.setItem(key, JSON.stringify(names));
    } catch {}
  };
  const choose = (names, on) => {
    names.forEach((name) => (on ? chosen.add(name) : chosen.delete(name)));
    show();
  };
  boxes.forEach((box) => box.addEventListener("change", () => choose([box.value], box.checked)));
  button("tick").addEventListener("click", () => choose(boxes.map((box) => box.value), true));
  button("untick").addEventListener("click", () => choose(boxes.map((box) => box.value), false));
  button("download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([list.value], { type: "text/plain" }));
    link.download = "relabel.txt";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  show();
})();

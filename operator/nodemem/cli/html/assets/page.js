"use strict";
(() => {
  const map = document.getElementById("map");
  const root = map.firstElementChild;
  const detail = document.getElementById("map-detail");
  const crumbs = document.getElementById("crumbs");
  const group = (tile) => tile.querySelector(":scope > ul");
  const children = (tile) => { const list = group(tile); return list ? Array.from(list.children) : []; };
  const parent = (tile) => tile === root ? null : tile.parentElement.closest(".tile");
  const name = (tile) => tile.querySelector(":scope > .label .name").textContent;
  const words = new Map();
  let current = root;
  let focused = root;

  // A tree in the sense of WAI-ARIA: where we are is open, and its children are what the arrow keys go to. What lies
  // deeper can be seen but not reached, so that there are never many stops.
  map.classList.add("alive");
  map.setAttribute("role", "tree");
  for (const tile of map.querySelectorAll(".tile")) {
    words.set(tile, tile.title);
    tile.removeAttribute("title");
    tile.setAttribute("role", "treeitem");
    tile.setAttribute("aria-label", words.get(tile));
    tile.querySelector(":scope > .label").setAttribute("aria-hidden", "true");
    const list = group(tile);
    if (list) list.setAttribute("role", "group");
  }

  function place() {
    // The root is made so large that the current tile fills the map.
    const path = [];
    for (let tile = current; tile; tile = parent(tile)) path.unshift(tile);
    const [left, top, width, height] = current.dataset.box.split(" ").map(Number);
    root.style.left = `${-100 * left / width}%`;
    root.style.top = `${-100 * top / height}%`;
    root.style.width = `${100 / width}%`;
    root.style.height = `${100 / height}%`;
    const edge = (tile) => Number(tile.dataset.box.split(" ")[1]);
    const bands = new Map();  // names that stand above a tile's own, within the current one
    for (const tile of words.keys()) {  // parents come first
      const above = parent(tile);
      const under = bands.has(above) && Math.abs(edge(tile) - edge(above)) < 1e-7;
      bands.set(tile, under && above !== current ? bands.get(above) + 1 : 0);
      tile.style.setProperty("--bands", path.includes(tile) ? 0 : bands.get(tile));
      const open = path.includes(tile);
      const list = group(tile);
      tile.classList.toggle("above", open);
      tile.classList.toggle("near", parent(tile) === current);
      if (list) {
        tile.setAttribute("aria-expanded", String(open));
        if (open) list.removeAttribute("aria-hidden"); else list.setAttribute("aria-hidden", "true");
      }
      if (parent(tile) === current || open) tile.tabIndex = -1; else tile.removeAttribute("tabindex");
    }
    breadcrumbs(path);
  }

  function breadcrumbs(path) {
    const list = document.createElement("ol");
    for (const tile of path) {
      const entry = document.createElement("li");
      if (tile === current) {
        const here = document.createElement("span");
        here.textContent = name(tile);
        here.setAttribute("aria-current", "location");
        entry.append(here);
      } else {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = name(tile);
        button.addEventListener("click", () => go(tile, true));
        entry.append(button);
      }
      list.append(entry);
    }
    crumbs.replaceChildren(list);
    crumbs.hidden = false;
  }

  function tell(tile) { detail.textContent = words.get(tile); }

  function focus(tile, move) {
    focused.tabIndex = -1;
    if (!words.has(focused) || (parent(focused) !== current && focused !== current)) focused.removeAttribute("tabindex");
    focused = tile;
    tile.tabIndex = 0;
    tell(tile);
    if (move) tile.focus({ preventScroll: true });
  }

  function go(tile, move, from) {
    if (!group(tile)) return;
    current = tile;
    place();
    focus(from || children(tile)[0], move);
    if (!move) tell(tile);
  }

  function out() {
    const above = parent(current);
    if (above) go(above, true, current);
  }

  map.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const row = parent(focused) === current ? children(current) : [focused];
    const at = row.indexOf(focused);
    const keys = {
      ArrowDown: () => focus(row[Math.min(at + 1, row.length - 1)], true),
      ArrowUp: () => focus(row[Math.max(at - 1, 0)], true),
      Home: () => focus(row[0], true),
      End: () => focus(row[row.length - 1], true),
      Enter: () => go(focused, true),
      " ": () => go(focused, true),
      ArrowRight: () => go(focused, true),
      ArrowLeft: out,
      Escape: out,
      Backspace: out,
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  const nearest = (target) => {
    let tile = target.closest(".tile");
    while (tile && tile !== root && parent(tile) !== current) tile = parent(tile);
    return tile;
  };
  map.addEventListener("click", (event) => {
    const tile = nearest(event.target);
    if (!tile || tile === root) return;
    if (group(tile)) go(tile, true); else focus(tile, true);
  });
  map.addEventListener("pointermove", (event) => { const tile = event.target.closest(".tile"); if (tile) tell(tile); });
  map.addEventListener("pointerleave", () => tell(map.contains(document.activeElement) ? focused : current));
  map.addEventListener("focusin", (event) => { if (words.has(event.target)) tell(event.target); });

  place();
  focus(children(root)[0] || root, false);
  tell(root);

  // Copy buttons.
  for (const pre of document.querySelectorAll(".finding pre")) {
    const box = document.createElement("div");
    const button = document.createElement("button");
    box.className = "copied";
    pre.replaceWith(box);
    box.append(pre, button);
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      let done = false;
      try {
        await navigator.clipboard.writeText(pre.textContent);
        done = true;
      } catch {
        const range = document.createRange();
        range.selectNodeContents(pre);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  // Only what has to be scrolled is a stop for the keyboard.
  const boxes = document.querySelectorAll(".scroll, pre");
  const stops = () => {
    for (const box of boxes) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
    }
  };
  stops();
  addEventListener("resize", stops);
  for (const each of document.querySelectorAll("details")) each.addEventListener("toggle", stops);

  // The report as a file, and the time where the reader is.
  const data = document.getElementById("report").textContent;
  const report = JSON.parse(data);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
  link.download = `${String(report.metadata.name).replace(/[^A-Za-z0-9.-]/g, "_")}-memoryreport.json`;
  link.textContent = "Download the report as JSON";
  document.getElementById("download").append(link);
  const taken = document.querySelector(".facts time");
  if (taken) {
    const moment = new Date(taken.dateTime);
    if (moment.getTimezoneOffset() !== 0) {
      document.querySelector(".local").textContent = ` (${moment.toLocaleString(undefined, { timeZoneName: "short" })} here)`;
    }
  }
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
  });
})();

// Keeps a page about work in progress up to date: requests it again every few seconds, and replaces what has changed.
"use strict";

(() => {
  const MAX_PAUSE = 60; // seconds between two requests while they fail
  const LAST_PAUSES = [2, 5, 15]; // seconds; a task that was marked failed stores what it has paid for before it stops
  const ANNOUNCE_EVERY = 20; // seconds; a screen reader could not finish a sentence about every image
  const STALE_AFTER = 3; // failed requests

  const main = document.getElementById("content");
  if (!main?.dataset.refreshSeconds) return;

  // --- replacing what has changed -----------------------------------------------------------------------------------

  const CONTAINERS = "main, section, .grid"; // their children are compared; all else is replaced as a whole
  const received = new WeakMap(); // the HTML of nodes, before scripts and people changed them
  const remember = (root) => {
    for (const parent of [root, ...root.querySelectorAll(CONTAINERS)])
      for (const node of parent.children) received.set(node, node.outerHTML);
  };
  remember(main);

  // A form that someone is filling in stays as it is.
  const isInUse = (node) =>
    node.matches("form") &&
    (node.contains(document.activeElement) ||
      [...node.elements].some((field) => "defaultValue" in field && field.value !== field.defaultValue));

  const isVersionOf = (node, next) =>
    (node.matches(CONTAINERS) &&
      node.tagName === next.tagName &&
      node.className === next.className &&
      node.dataset.key === next.dataset.key) ||
    (isInUse(node) && next.matches("form"));

  // What has not changed stays in place, and with it loaded images, focus and the position on the page.
  const update = (parent, nextParent) => {
    const nodes = [...parent.children];
    let at = 0;
    for (const next of [...nextParent.children]) {
      const html = next.outerHTML;
      const found = nodes.findIndex(
        (node, index) => index >= at && (received.get(node) === html || isVersionOf(node, next)),
      );
      if (found < 0) {
        parent.insertBefore(next, nodes[at] ?? null);
        received.set(next, html);
        remember(next);
        continue;
      }
      while (at < found) nodes[at++].remove();
      if (nodes[at].matches(CONTAINERS)) update(nodes[at], next);
      at += 1;
    }
    while (at < nodes.length) nodes[at++].remove();
  };

  const restoreFocus = (focused) => {
    if (!focused || focused.isConnected) return;
    const href = focused.getAttribute("href");
    const same = [...main.querySelectorAll("a, button, input, select")].find((node) =>
      focused.id ? node.id === focused.id : href && node.getAttribute("href") === href,
    );
    same?.focus({ preventScroll: true });
  };

  const show = (next) => {
    // The policy that this page was loaded with forbids images from elsewhere.
    if (next.dataset.imageSources !== main.dataset.imageSources) {
      location.reload();
      return;
    }
    const focused = document.activeElement;
    update(main, next);
    if (next.dataset.refreshSeconds) main.dataset.refreshSeconds = next.dataset.refreshSeconds;
    else delete main.dataset.refreshSeconds;
    dispatchEvent(new Event("refreshed"));
    restoreFocus(focused);
    announce();
  };

  // --- telling screen readers ---------------------------------------------------------------------------------------

  let announced = Date.now();
  const announce = () => {
    const isOver = !main.dataset.refreshSeconds;
    if (!isOver && Date.now() - announced < ANNOUNCE_EVERY * 1000) return;
    announced = Date.now();
    const parts = [...main.querySelectorAll(isOver ? ".totals" : ".progress")].map((part) => part.innerText);
    document.getElementById("announcement").textContent = [...(isOver ? ["Ended"] : []), ...parts].join(". ");
  };

  // --- requesting the page ------------------------------------------------------------------------------------------

  let etag = null;
  let failures = 0;
  let isBusy = false;
  let timer = 0;
  let lastPauses = [...LAST_PAUSES];

  const request = async () => {
    const headers = { "Imagen-Refresh": "1", ...(etag && { "If-None-Match": etag }) };
    const response = await fetch(location.href, { headers, cache: "no-store", redirect: "error" });
    if (response.status === 304) return;
    if (!response.ok) throw new Error(response.statusText);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    show(page.getElementById("content"));
    etag = response.headers.get("ETag");
  };

  const refresh = async () => {
    if (isBusy) return;
    clearTimeout(timer);
    isBusy = true;
    try {
      await request();
      failures = 0;
    } catch {
      failures += 1; // such as a server that restarts, or a session that has expired
    }
    isBusy = false;
    main.classList.toggle("stale", failures >= STALE_AFTER);
    wait();
  };

  const wait = () => {
    const isLive = Boolean(main.dataset.refreshSeconds);
    if (isLive) lastPauses = [...LAST_PAUSES];
    const seconds = isLive ? Number(main.dataset.refreshSeconds) : lastPauses.shift();
    if (seconds && !document.hidden) timer = setTimeout(refresh, Math.min(seconds * 2 ** failures, MAX_PAUSE) * 1000);
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  wait();
})();

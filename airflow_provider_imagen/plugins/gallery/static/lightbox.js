// Opens the image of a card large, over the grid.
//
// The URL says which one: its hash is "#image", followed by the query of the image's own page. Opening adds an entry to
// the browser's history, so that its Back button closes the lightbox; other images replace the entry.
"use strict";

(() => {
  const FIRST = "#image-first";
  const LAST = "#image-last";

  const main = document.getElementById("content");
  const dialog = document.getElementById("lightbox");
  const frame = dialog.querySelector("zoom-frame");
  const info = dialog.querySelector(".info");
  const position = dialog.querySelector(".position");
  const previous = dialog.querySelector('[rel="prev"]');
  const next = dialog.querySelector('[rel="next"]');
  const infoButton = dialog.querySelector("[aria-controls]");

  const cards = () => [...main.querySelectorAll("a.card")];
  const hashOf = (card) => `#image${card.search}`;
  const find = (hash) => {
    if (hash === FIRST) return cards()[0];
    if (hash === LAST) return cards().at(-1);
    return cards().find((card) => hashOf(card) === hash);
  };

  // --- the image ----------------------------------------------------------------------------------------------------

  const loading = new Map(); // the images shown and next to it, by URL
  const isBroken = (image) => image.complete && !image.naturalWidth;
  const load = (card) => {
    const url = card.dataset.full;
    if (!url) return null;
    if (!loading.has(url) || isBroken(loading.get(url))) {
      const image = new Image();
      for (const side of ["width", "height"]) {
        const pixels = card.querySelector("img").getAttribute(side);
        if (pixels) image.setAttribute(side, pixels);
      }
      image.alt = card.dataset.alt ?? card.querySelector(".prompt").textContent;
      image.src = url;
      loading.set(url, image);
    }
    return loading.get(url);
  };

  const keepOnly = (images) => {
    for (const [url, image] of loading)
      if (!images.includes(image)) {
        image.removeAttribute("src"); // stops loading
        loading.delete(url);
      }
  };

  let shown = null; // URL of the page of the image
  const draw = (card) => {
    shown = card.href;
    const thumbnail = card.querySelector("img");
    const preview = thumbnail?.complete && thumbnail.naturalWidth ? thumbnail.cloneNode() : "";
    const image = load(card);
    const note = card.querySelector(".unavailable").cloneNode(true);
    note.hidden = Boolean(image);
    frame.replaceChildren(preview, image ?? "", note);
    frame.act("whole");
    info.querySelector(".about-image").replaceChildren(
      ...[...card.querySelectorAll(".prompt, .name, .metadata, .details")].map((part) => part.cloneNode(true)),
    );
    info.querySelector("a").href = card.href;
    return image;
  };

  const pointTo = (link, card, hash) => {
    const page = main.querySelector(`.pager a[rel="${link.rel}"]`);
    link.hidden = !card && !page;
    if (!link.hidden) link.href = card ? hashOf(card) : `${page.href}${hash}`;
  };

  const show = (card) => {
    const all = cards();
    const at = all.indexOf(card);
    const neighbours = [all[at - 1], all[at + 1]];
    pointTo(previous, neighbours[0], LAST);
    pointTo(next, neighbours[1], FIRST);
    const isPart = main.querySelector(".pager a");
    position.textContent = `Image ${at + 1} of ${all.length}${isPart ? " on this page" : ""}`;
    if (!dialog.open) dialog.showModal();
    if (shown === card.href) return; // its page has been refreshed
    const image = draw(card);
    // The image comes first, then its neighbours.
    const loaded = image?.decode().catch(() => {});
    Promise.resolve(loaded).then(() => {
      if (shown === card.href) keepOnly([image, ...neighbours.filter(Boolean).map(load)]);
    });
  };

  // --- opening, moving, closing -------------------------------------------------------------------------------------

  const go = (hash) => {
    const card = find(hash);
    if (!card) return; // a live page has moved it to its next page
    history.replaceState(history.state, "", hashOf(card));
    show(card);
  };

  const follow = () => (find(location.hash) ? go(location.hash) : dialog.close());
  addEventListener("popstate", follow);

  main.addEventListener("click", (event) => {
    const card = event.target.closest("a.card");
    if (!card || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // such as a new tab
    event.preventDefault();
    history.pushState({ isLightbox: true }, "", hashOf(card));
    show(card);
  });

  // A live page replaces its cards.
  addEventListener("refreshed", () => {
    const card = dialog.open && cards().find((each) => each.href === shown);
    if (card) show(card);
  });

  dialog.addEventListener("close", () => {
    const card = cards().find((each) => each.href === shown);
    shown = null;
    keepOnly([]);
    frame.replaceChildren();
    if (location.hash.startsWith("#image")) {
      if (history.state?.isLightbox) history.back();
      else history.replaceState(null, "", location.pathname + location.search);
    }
    card?.focus({ preventScroll: true });
    // After the browser has restored the position on the page.
    setTimeout(() => card?.scrollIntoView({ block: "nearest" }), 100);
  });

  const toggleInfo = (isOpen) => {
    info.hidden = !isOpen;
    infoButton.setAttribute("aria-expanded", isOpen);
  };
  toggleInfo(innerWidth > 860);

  dialog.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (link?.getAttribute("href").startsWith("#")) {
      event.preventDefault();
      go(link.hash);
    } else if (event.target.closest("[data-close]")) dialog.close();
    else if (event.target.closest("[aria-controls]")) toggleInfo(info.hidden);
  });

  dialog.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = { ArrowLeft: previous, ArrowRight: next }[event.key];
    if (link && !link.hidden) link.click();
    else if (event.key === "i") toggleInfo(info.hidden);
  });

  // A swipe; a zoomed image is panned instead.
  let start = null;
  frame.addEventListener("pointerdown", (event) => {
    start = event.isPrimary && event.pointerType === "touch" ? event : null;
  });
  frame.addEventListener("pointerup", (event) => {
    const [x, y] = start ? [event.clientX - start.clientX, event.clientY - start.clientY] : [0, 0];
    const link = x < 0 ? next : previous;
    if (frame.view.zoom === 1 && Math.abs(x) > 50 && Math.abs(x) > 2 * Math.abs(y) && !link.hidden) link.click();
  });

  go(location.hash);
})();

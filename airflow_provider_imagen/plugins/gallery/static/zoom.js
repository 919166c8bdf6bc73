// <zoom-frame>: images in it can be zoomed and panned by wheel, pinch, drag, double click, buttons and keys.
//
// All frames in a .zoom-group show the same part of their images. PhotoSwipe and similar libraries cannot do that, and
// with this, a <dialog> is all that a lightbox takes (lightbox.js), so there is no library here.
"use strict";

(() => {
  // zoom: 1 shows the whole image; x, y: the point in the middle of the frame, from 0 to 1 across the image
  const WHOLE = { zoom: 1, x: 0.5, y: 0.5 };
  const STEP = 1.5; // zoom per press
  const PAN = 0.2; // frame sizes per press
  const MOST = 8; // frame pixels per image pixel, at most
  const ACTIONS = { "+": "in", "=": "in", "-": "out", 0: "whole", 1: "actual" };
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const clamp = (value, least, most) => Math.max(least, Math.min(value, most));

  class ZoomFrame extends HTMLElement {
    #view = WHOLE;
    #pointers = new Map(); // where each finger or the pressed mouse button is

    connectedCallback() {
      new ResizeObserver(() => this.#draw()).observe(this);
      this.addEventListener("load", () => this.#draw(), true);
      this.addEventListener("wheel", (event) => this.#scroll(event), { passive: false });
      this.addEventListener("dblclick", (event) => this.act("actual", event));
      this.addEventListener("dragstart", (event) => event.preventDefault());
      this.addEventListener("pointerdown", (event) => {
        this.#pointers.set(event.pointerId, event);
        this.setPointerCapture(event.pointerId);
      });
      this.addEventListener("pointermove", (event) => this.#drag(event));
      for (const type of ["pointerup", "pointercancel"])
        this.addEventListener(type, (event) => this.#pointers.delete(event.pointerId));
    }

    get view() {
      return this.#view;
    }

    set view(view) {
      this.#view = view;
      this.#draw();
    }

    /** The zoom that shows one pixel of the image on one pixel of the screen. */
    get actualZoom() {
      return 1 / (this.#fit * devicePixelRatio);
    }

    get isActual() {
      return this.#view.zoom === this.actualZoom;
    }

    /** Zoom "in", "out", to the "whole" image, or to its "actual" pixels and back. */
    act(action, point = null) {
      const { zoom } = this.#view;
      const actual = this.isActual ? 1 : this.actualZoom;
      this.#zoomTo({ in: zoom * STEP, out: zoom / STEP, whole: 1, actual }[action], point);
    }

    pan(x, y) {
      const [width, height] = this.#shownSize;
      this.#moveTo({
        ...this.#view,
        x: this.#view.x + (x * this.clientWidth) / width,
        y: this.#view.y + (y * this.clientHeight) / height,
      });
    }

    get #imageSize() {
      const images = [...this.querySelectorAll("img")];
      const loaded = images.findLast((image) => image.naturalWidth);
      if (loaded) return [loaded.naturalWidth, loaded.naturalHeight];
      return [Number(images[0]?.getAttribute("width")) || 1, Number(images[0]?.getAttribute("height")) || 1];
    }

    get #fit() {
      const [width, height] = this.#imageSize;
      return Math.min(this.clientWidth / width, this.clientHeight / height);
    }

    get #shownSize() {
      const scale = this.#fit * this.#view.zoom;
      return this.#imageSize.map((side) => side * scale);
    }

    #draw() {
      if (!this.clientWidth) return;
      const [width, height] = this.#shownSize;
      const middle = (at, side, space) => (side <= space ? 0.5 : clamp(at, space / 2 / side, 1 - space / 2 / side));
      this.#view = {
        ...this.#view,
        x: middle(this.#view.x, width, this.clientWidth),
        y: middle(this.#view.y, height, this.clientHeight),
      };
      for (const image of this.querySelectorAll("img"))
        Object.assign(image.style, {
          width: `${width}px`,
          height: `${height}px`,
          left: `${this.clientWidth / 2 - this.#view.x * width}px`,
          top: `${this.clientHeight / 2 - this.#view.y * height}px`,
        });
      this.toggleAttribute("zoomed", this.#view.zoom > 1);
    }

    #moveTo(view) {
      this.view = view;
      this.dispatchEvent(new Event("viewchange", { bubbles: true }));
    }

    // What is at the point (in the middle, without one) stays there.
    #zoomTo(zoom, point) {
      const box = this.getBoundingClientRect();
      const [right, down] = point
        ? [point.clientX - box.left - box.width / 2, point.clientY - box.top - box.height / 2]
        : [0, 0];
      const next = clamp(zoom, Math.min(this.actualZoom, 1), Math.max(MOST * this.actualZoom, 1));
      const [width, height] = this.#shownSize;
      const share = 1 - this.#view.zoom / next;
      this.#moveTo({
        zoom: next,
        x: this.#view.x + (right / width) * share,
        y: this.#view.y + (down / height) * share,
      });
    }

    #scroll(event) {
      const isPinch = event.ctrlKey || event.metaKey; // what browsers report for a pinch on a trackpad
      if (this.hasAttribute("scrolls") && !isPinch) return;
      event.preventDefault();
      this.#zoomTo(this.#view.zoom * Math.exp(-event.deltaY * (isPinch ? 0.01 : 0.002)), event);
    }

    #drag(event) {
      const before = this.#pointers.get(event.pointerId);
      if (!before) return;
      const other = [...this.#pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
      this.#pointers.set(event.pointerId, event);
      if (other) {
        const distance = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
        this.#zoomTo((this.#view.zoom * distance(event)) / Math.max(distance(before), 1), other);
      } else if (this.#view.zoom > 1) {
        this.pan(
          (before.clientX - event.clientX) / this.clientWidth,
          (before.clientY - event.clientY) / this.clientHeight,
        );
      }
    }
  }
  customElements.define("zoom-frame", ZoomFrame);

  for (const group of document.querySelectorAll(".zoom-group")) {
    const frames = [...group.querySelectorAll("zoom-frame")];
    // The one with the most pixels, so that "actual" hides none of them.
    const leader = () => frames.reduce((most, frame) => (frame.actualZoom > most.actualZoom ? frame : most));
    const actual = group.querySelector('[data-zoom="actual"]');
    group.querySelector(".tools").hidden = false;
    group.addEventListener("click", (event) => {
      const button = event.target.closest("[data-zoom]");
      if (button) leader().act(button.dataset.zoom);
    });
    group.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const arrow = event.shiftKey && ARROWS[event.key];
      if (arrow) leader().pan(PAN * arrow[0], PAN * arrow[1]);
      else if (ACTIONS[event.key]) leader().act(ACTIONS[event.key]);
      else return;
      event.preventDefault();
    });
    group.addEventListener("viewchange", (event) => {
      for (const frame of frames) if (frame !== event.target) frame.view = event.target.view;
      actual.setAttribute("aria-pressed", leader().isActual);
    });
  }
})();

"use strict";
// Hover, click and keyboard on the charts: a network is found, and followed through all figures.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const NEAR = 24; // pixels on the screen within which a point is meant
  const networks = JSON.parse(document.getElementById("networks-data").textContent);
  const numbers = new Map(networks.map(([key], number) => [key, number]));
  const tip = document.getElementById("tip");
  const bar = document.getElementById("followed");
  let followed = -1;

  const about = (number) => `${networks[number][0]}: ${networks[number][1]}`;

  const plots = [...document.querySelectorAll("[data-points]")].map((plot) => {
    const points = plot.dataset.points.split(" ").map((text) => text.split(",").map(Number));
    points.sort((a, b) => a[2] - b[2] || a[1] - b[1]); // from the best down
    return { plot, svg: plot.querySelector("svg"), points, at: -1, ring: null };
  });

  function ring(svg, point, name, radius) {
    const circle = document.createElementNS(SVG, "circle");
    circle.setAttribute("class", name);
    circle.setAttribute("cx", point[1]);
    circle.setAttribute("cy", point[2]);
    circle.setAttribute("r", radius);
    svg.append(circle);
    return circle;
  }

  function scale(one) {
    const box = one.svg.getBoundingClientRect();
    return { box, factor: box.width / one.svg.viewBox.baseVal.width };
  }

  function show(one, place) {
    one.ring?.remove();
    one.ring = null;
    one.at = place;
    tip.hidden = place < 0;
    if (place < 0) return;
    const point = one.points[place];
    one.ring = ring(one.svg, point, "ring", 7);
    tip.textContent = about(point[0]);
    const { box, factor } = scale(one);
    const x = box.left + point[1] * factor;
    const y = box.top + point[2] * factor;
    const left = Math.min(x + 12, window.innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${Math.max(y - tip.offsetHeight - 10, 8)}px`;
  }

  function nearest(one, event) {
    const { box, factor } = scale(one);
    const x = (event.clientX - box.left) / factor;
    const y = (event.clientY - box.top) / factor;
    let best = -1;
    let least = (NEAR / factor) ** 2;
    one.points.forEach((point, place) => {
      const distance = (point[1] - x) ** 2 + (point[2] - y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    });
    return best;
  }

  function follow(number) {
    followed = number === followed ? -1 : number;
    document.querySelectorAll(".followed-ring").forEach((circle) => circle.remove());
    const key = followed < 0 ? null : networks[followed][0];
    for (const part of document.querySelectorAll("[data-network]")) {
      const mine = key !== null && part.dataset.network.split(" ").includes(key);
      part.classList.toggle("followed", mine);
    }
    for (const one of plots) {
      for (const point of one.points) {
        if (point[0] === followed) ring(one.svg, point, "followed-ring", 10);
      }
    }
    for (const button of document.querySelectorAll("[data-follow]")) {
      button.setAttribute("aria-pressed", String(button.dataset.follow === key));
    }
    bar.hidden = followed < 0;
    bar.textContent = "";
    if (followed < 0) return;
    const close = document.createElement("button");
    close.type = "button";
    close.textContent = "Let go";
    close.addEventListener("click", () => follow(followed));
    bar.append(`Following ${about(followed)} `, close);
  }

  for (const one of plots) {
    one.plot.addEventListener("pointermove", (event) => {
      const place = nearest(one, event);
      if (place !== one.at) show(one, place);
      one.plot.style.cursor = place < 0 ? "" : "pointer";
    });
    one.plot.addEventListener("pointerleave", () => show(one, -1));
    one.plot.addEventListener("blur", () => show(one, -1));
    one.plot.addEventListener("click", (event) => {
      const place = nearest(one, event);
      if (place >= 0) follow(one.points[place][0]);
    });
    one.plot.addEventListener("keydown", (event) => {
      const last = one.points.length - 1;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) show(one, Math.min(Math.max(one.at + step, 0), last));
      else if (event.key === "Home") show(one, 0);
      else if (event.key === "End") show(one, last);
      else if (event.key === "Enter" && one.at >= 0) follow(one.points[one.at][0]);
      else if (event.key === "Escape") show(one, -1);
      else return;
      event.preventDefault();
    });
  }
  for (const button of document.querySelectorAll("[data-follow]")) {
    const number = numbers.get(button.dataset.follow);
    if (number === undefined) button.disabled = true;
    else button.addEventListener("click", () => follow(number));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && followed >= 0) follow(followed);
  });
  document.documentElement.dataset.ready = "yes";
})();

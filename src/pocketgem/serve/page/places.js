// Boxes and points in an answer, drawn over the picture it is about. Places are integers from 0 to 1000, down first.

import { element } from "./view.js";

const SCALE = 1000, MOST = 200;
const SVG = "http://www.w3.org/2000/svg";

// [{box: [top, left, bottom, right] | null, point: [down, across] | null, label}] of the JSON in a text.
export function placesIn(text) {
  if (!/"(box_2d|point)"/.test(text)) return [];
  for (const candidate of candidates(text)) {
    const places = read(candidate);
    if (places.length) return places.slice(0, MOST);
  }
  return [];
}

function* candidates(text) {
  yield text;
  for (const [, fenced] of text.matchAll(/```(?:json)?\s*([\s\S]*?)```/g)) yield fenced;
  yield text.slice(text.indexOf("["), text.lastIndexOf("]") + 1);
  yield text.slice(text.indexOf("{"), text.lastIndexOf("}") + 1);
}

function read(text) {
  let value;
  try { value = JSON.parse(text); } catch { return []; }
  const list = Array.isArray(value) ? value : [value];
  return list.map(place).filter(Boolean);
}

function place(one) {
  const label = typeof one?.label === "string" ? one.label : "";
  if (numbers(one?.box_2d, 4)) {
    const [a, b, c, d] = one.box_2d;
    return { box: [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)], point: null, label };
  }
  return numbers(one?.point, 2) ? { box: null, point: one.point, label } : null;
}

const numbers = (list, count) => Array.isArray(list) && list.length === count && list.every((one) => Number.isFinite(one) && one >= 0 && one <= SCALE);

// The picture with the places on it.
export function drawn(image, places) {
  const layer = document.createElementNS(SVG, "svg");
  layer.setAttribute("viewBox", `0 0 ${SCALE} ${SCALE}`);
  layer.setAttribute("preserveAspectRatio", "none");
  layer.setAttribute("aria-hidden", "true");
  const box = element("div", { className: "over" }, element("img", { src: image.data, alt: image.name }), layer);
  places.forEach((one, index) => {
    if (one.box) layer.append(rectangle(one.box, index));
    else box.append(at(element("span", { className: `dot c${index % 6}` }), ...one.point));
    const [down, across] = one.box ?? one.point;
    if (one.label) box.append(at(element("span", { className: `tag c${index % 6}`, text: one.label }), down, across));
  });
  const names = places.map((one) => one.label || "a place").join(", ");
  const figure = element("figure", { className: "places" }, box, element("figcaption", { className: "hidden", text: `On the picture: ${names}` }));
  return figure;
}

function rectangle([top, left, bottom, right], index) {
  const shape = document.createElementNS(SVG, "rect");
  const facts = { x: left, y: top, width: right - left, height: bottom - top, class: `c${index % 6}` };
  for (const [name, value] of Object.entries(facts)) shape.setAttribute(name, value);
  return shape;
}

function at(node, down, across) {
  node.style.top = `${down / 10}%`;
  node.style.left = `${across / 10}%`;
  return node;
}

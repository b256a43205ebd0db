const numbers = (color) => (color.match(/[\d.]+/g) || []).map(Number);
const luminance = (color) => {
  const [r, g, b] = numbers(color).map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};

function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, of = (e) => view.getComputedStyle(e);
  const all = [...page.body.querySelectorAll("*")], svgs = [...page.querySelectorAll("svg.plot")];
  const named = (e) => `${e.tagName}.${e.getAttribute("class") || ""}: ${(e.textContent || "").slice(0, 40)}`;
  const isOwn = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const isSeen = (e) => e.getClientRects().length > 0 && e.checkVisibility();
  const ground = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const color = of(at).backgroundColor;
      if (numbers(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const inSvg = (e) => e.closest("svg") !== null;
  const texts = all.filter((e) => isOwn(e) && isSeen(e) && !["title", "desc", "SCRIPT", "STYLE"].includes(e.tagName));
  const ink = (e) => (inSvg(e) ? of(e).fill : of(e).color);
  const pixels = (e) => {
    const svg = e.closest("svg");
    const scale = svg && svg.viewBox.baseVal.width ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    return parseFloat(of(e).fontSize) * scale;
  };
  const beyond = (e) => {
    const box = e.getBoundingClientRect(), picture = e.closest("svg").getBoundingClientRect();
    return box.left < picture.left - 1 || box.right > picture.right + 1 || box.top < picture.top - 1 || box.bottom > picture.bottom + 1;
  };
  const ids = [...page.querySelectorAll("[id]")].map((e) => e.id);
  const isNamed = (svg) => {
    const targets = (svg.getAttribute("aria-labelledby") || "").split(" ").map((id) => page.getElementById(id));
    return svg.getAttribute("role") === "img" && targets.length === 2 && targets.every((t) => t && t.textContent.trim());
  };
  const marks = [...page.querySelectorAll("svg .mark:not(.faint)")].filter(isSeen);
  return {
    title: page.title,
    headings: page.querySelectorAll("h2").length,
    ground: of(page.body).backgroundColor,
    width: page.documentElement.scrollWidth,
    sticking_out: all
      .filter((e) => isSeen(e) && !inSvg(e) && !e.closest(".scroll table"))
      .filter((e) => e.getBoundingClientRect().right > frame.clientWidth + 0.5).map(named),
    cut_off: [...page.querySelectorAll("svg.plot text")].filter((e) => isSeen(e) && beyond(e)).map(named),
    smallest: Math.min(...texts.map(pixels)),
    faint_text: texts.filter((e) => contrast(ink(e), ground(e)) < 4.5).map(named),
    faint_marks: marks.filter((e) => contrast(of(e).fill, ground(e)) < 3).map(named),
    unnamed: svgs.filter((svg) => !isNamed(svg)).map(named),
    twice: ids.filter((id, i) => ids.indexOf(id) !== i),
    loaded: [...view.performance.getEntriesByType("resource").map((e) => e.name), ...[...page.querySelectorAll("[src]")].map((e) => e.src)],
    scripts: page.scripts.length,
    styled: of(page.body).fontVariantNumeric !== undefined && of(page.querySelector("h2")).letterSpacing !== "normal",
  };
}

window.onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) found[frame.width] = measure(frame);
  document.querySelector("pre").textContent = JSON.stringify(found);
};

(() => {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const other = JSON.parse(document.getElementById("dark-colours").textContent);
  const config = {
    responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };
  let printing = false;

  const coloured = (value) => {
    if (typeof value === "string") return other[value] ?? value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, coloured(inner)]));
    }
    return value;
  };

  const draw = (canvas) => {
    const source = canvas.closest("figure").querySelector("script.figure-data");
    const drawn = JSON.parse(source.textContent);
    const shown = dark.matches && !printing ? coloured(drawn) : drawn;
    if (printing) shown.layout.width = canvas.clientWidth;  // a printer tells no plot how wide its paper is
    return Plotly.react(canvas, shown.data, shown.layout, config);
  };

  const drawAll = async (where) => {
    for (const canvas of where.querySelectorAll(".canvas")) {
      try {
        await draw(canvas);
      } catch (error) {  // the others are drawn all the same
        console.error(error);
        canvas.textContent = "This plot could not be drawn here; the tables have its numbers.";
      }
      await new Promise((resolve) => setTimeout(resolve));
    }
  };

  // the keyboard zooms and pans a plot that has the focus; plain arrows go on scrolling the page
  const moved = ([low, high], by, zoom) => {
    const middle = (low + high) / 2 + by * (high - low), half = ((high - low) / 2) * zoom;
    return [middle - half, middle + half];
  };
  document.addEventListener("keydown", (event) => {
    const canvas = event.target, layout = canvas.layout;
    if (!canvas.classList?.contains("canvas") || !layout?.xaxis?.range || event.ctrlKey || event.metaKey) return;
    const zoom = { "+": 0.7, "=": 0.7, "-": 1 / 0.7 }[event.key];
    const pan = event.shiftKey && { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15] }[event.key];
    if (event.key === "0") {
      Plotly.relayout(canvas, { "xaxis.autorange": true, "yaxis.autorange": true });
    } else if (zoom || pan) {
      const [x, y] = pan || [0, 0];
      Plotly.relayout(canvas, {
        "xaxis.range": moved(layout.xaxis.range, x, zoom || 1), "yaxis.range": moved(layout.yaxis.range, y, zoom || 1),
      });
    } else return;
    event.preventDefault();
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {  // a page from a disk may not be allowed to
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    document.getElementById("copied").textContent = "Copied.";
  });

  const redraw = () => drawAll(document);
  dark.addEventListener("change", redraw);
  const print = (now) => {
    printing = now;
    document.documentElement.classList.toggle("printing", now);
    if (now) document.querySelectorAll(".canvas").forEach(draw);
    else redraw();
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));

  // live: sections that have changed are put in place; plots keep their zoom, boxes their scroll, details stay open
  const follow = () => {
    const told = document.getElementById("live-state");
    const sources = new Map([...document.querySelectorAll("main > section")].map((one) => [one.id, one.outerHTML]));
    let tag = document.body.dataset.live;
    const replace = async (text) => {
      const fresh = [...new DOMParser().parseFromString(text, "text/html").querySelector("main").children];
      const main = document.querySelector("main"), focused = document.activeElement?.dataset?.figure;
      let before = null;
      for (const section of fresh) {
        const source = section.outerHTML, old = document.getElementById(section.id);
        if (!old) main.insertBefore(document.adoptNode(section), before ? before.nextSibling : main.firstChild);
        else if (sources.get(section.id) !== source) {
          const opened = [...old.querySelectorAll("details")].map((one) => one.open);
          const scrolled = [...old.querySelectorAll(".scroll, .sideways, pre")].map((one) => [one.scrollLeft, one.scrollTop]);
          for (const canvas of section.querySelectorAll(".canvas")) {
            const drawn = old.querySelector(`.canvas[data-figure="${canvas.dataset.figure}"]`);
            if (drawn) canvas.replaceWith(drawn);
          }
          old.replaceWith(section);
          section.querySelectorAll("details").forEach((one, k) => { one.open = opened[k] ?? one.open; });
          section.querySelectorAll(".scroll, .sideways, pre").forEach((one, k) => one.scrollTo(...(scrolled[k] ?? [0, 0])));
        }
        if (focused) document.querySelector(`.canvas[data-figure="${focused}"]`)?.focus({ preventScroll: true });
        before = document.getElementById(section.id);
        if (sources.get(section.id) !== source) await drawAll(before);
        sources.set(section.id, source);
      }
    };
    const ask = async () => {
      try {
        const answer = await fetch("content", { headers: { "If-None-Match": tag }, cache: "no-store" });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          await replace(await answer.text());
        } else if (answer.status !== 304) throw new Error(await answer.text());
        told.textContent = `Live. As of ${new Date().toLocaleTimeString()}.`;
      } catch (error) {
        told.textContent = error instanceof TypeError ? "Not live any more: kdtune report has ended." : error.message;
      }
      setTimeout(ask, 2000);
    };
    setTimeout(ask, 2000);
  };

  redraw().then(() => {
    document.documentElement.dataset.drawn = "yes";
    if (document.body.dataset.live) follow();
  });
})();

(() => {
  "use strict";
  const read = (id) => document.getElementById(id).textContent;
  const root = document.documentElement;

  // Figures: drawn one after another so that the page stays usable; those inside closed details when these open.
  const config = JSON.parse(read("plot-config"));
  const failed = (div, error) => {
    div.innerHTML = "";
    const note = document.createElement("p");
    note.className = "failed";
    note.textContent = "This figure could not be drawn: " + error.message;
    div.append(note);
    root.dataset.failed = String(Number(root.dataset.failed || 0) + 1);
  };
  const draw = (div) => {
    if (div.dataset.drawn) return Promise.resolve();
    div.dataset.drawn = "yes";
    return Promise.resolve()
      .then(() => {
        const figure = JSON.parse(read(div.id + "-data"));
        return Plotly.newPlot(div, figure.data, figure.layout, config);
      })
      .catch((error) => failed(div, error));
  };
  const shown = [...document.querySelectorAll(".figure")].filter((div) => !div.closest("details:not([open])"));
  const next = () => {
    const div = shown.shift();
    if (div) draw(div).then(() => setTimeout(next, 0));
    else root.dataset.ready = "yes";
  };
  for (const box of document.querySelectorAll("details")) {
    box.addEventListener("toggle", () => {
      if (box.open) box.querySelectorAll(".figure").forEach(draw);
    });
  }
  next();

  // Tables: stored once as gzip in base64, unpacked into a file on demand. Nothing leaves the page.
  const save = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(read(id).trim()), (c) => c.charCodeAt(0));
    if (typeof DecompressionStream === "undefined") return [new Blob([bytes], { type: "application/gzip" }), ".gz"];
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return [new Blob([await new Response(stream).blob()], { type: "text/csv" }), ""];
  };
  window.sinklensTable = async (name) => (await unpack("table-" + name))[0].text();
  for (const button of document.querySelectorAll("button.csv")) {
    button.addEventListener("click", async () => {
      const [blob, ending] = await unpack("table-" + button.dataset.table);
      save(blob, button.dataset.table + ".csv" + ending);
    });
  }

  // Navigation: mark the section being read.
  const links = new Map([...document.querySelectorAll("nav.toc a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const mark = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        links.forEach((a) => a.classList.remove("here"));
        links.get(entry.target.id)?.classList.add("here");
      }
    },
    { rootMargin: "-70px 0px -70% 0px" },
  );
  document.querySelectorAll("section[id]").forEach((section) => mark.observe(section));
})();

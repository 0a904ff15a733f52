// The widgets' manager asks require.js where it lies, to find its icon font: beside this file.
require.config({
  paths: { "@jupyter-widgets/html-manager/dist": new URL(".", document.currentScript.src).href.replace(/\/$/, "") },
});

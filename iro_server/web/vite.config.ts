import { defineConfig } from "vite";

// `npm run dev` serves the sources and passes calls of the API on to `iro serve`.
export default defineConfig({
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
  build: { target: "es2022", modulePreload: false, assetsInlineLimit: 0, outDir: "built" },
});

import { useEffect, useRef, useState } from "preact/hooks";

export function KeyForm({ wrong, onKey }: { wrong: boolean; onKey: (key: string) => void }) {
  const [key, setKey] = useState("");
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  const submit = (event: Event) => {
    event.preventDefault();
    onKey(key.trim());
  };
  return (
    <section class="card narrow">
      <h1>API key</h1>
      <p>
        This server asks for a key (<code>iro keys create NAME</code>). This tab keeps it until you close it; it is sent
        to this server only.
      </p>
      <form onSubmit={submit}>
        <label for="key">Key</label>
        <input
          id="key"
          ref={field}
          type="password"
          autocomplete="off"
          value={key}
          aria-describedby={wrong ? "wrong-key" : undefined}
          onInput={(event) => setKey(event.currentTarget.value)}
        />
        {wrong && (
          <p class="bad" id="wrong-key" role="alert">
            The server does not accept this key.
          </p>
        )}
        <button class="main" disabled={!key.trim()}>
          Continue
        </button>
      </form>
    </section>
  );
}

export function NewJob({ base }: { base: string }) {
  return <h1>New job for {base}</h1>;
}

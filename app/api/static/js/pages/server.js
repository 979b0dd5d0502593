export async function mount(main) {}

-- Tells by what batches are chosen, in one command for many.
-- KEYS  METAS: meta of each batch
-- Returns for each: control, phase, ended_ms, name
-- Invariant: nothing is changed.
local labels = {}
for i, key in ipairs(METAS) do labels[i] = answer(read_label(key)) end
return labels

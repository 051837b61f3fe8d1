-- Notes what of a chunk is about to run alone, because its workers died.
-- KEYS  SHARED
-- ARG   number of the chunk  fence  alone: '*': all of it, or the offset of a job
-- Returns 1: noted | 0: the lease is somebody else's now
-- Invariant: the deaths that count against a suspect are those of leases that ended while it was noted under their fence;
-- noting the same one again keeps them, noting another one begins anew.
local s = read_state(ARG.number)
if not s or s.status ~= 'L' or s.fence ~= ARG.fence then return 0 end
local _, alone, deaths = read_suspect(ARG.number)
write_suspect(ARG.number, ARG.fence, ARG.alone, alone == ARG.alone and tonumber(deaths) or 0)
return 1

-- A directory entry and the attributes of the inode it names.
--
-- KEYS[1]: the directory's hash; ARGV: prefix of the volume's keys, the name.
-- Answer: nil, or {entry, attribute record or nil}.
-- The attribute's key follows from the entry, so it cannot be announced in KEYS: it is of the same volume,
-- in a cluster of the same slot.
local entry = redis.call('HGET', KEYS[1], ARGV[2])
if not entry then return false end
if #entry ~= 9 then return { entry, false } end
return { entry, redis.call('GET', ARGV[1] .. 'i' .. decimal(entry, 2)) }

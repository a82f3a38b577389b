//! Finding functions in a program and decoding their instructions.

use std::error::Error;
use std::fmt;

use iced_x86::{Decoder, DecoderOptions, FastFormatter, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// A function in a program's symbol table.
#[derive(Debug)]
pub(super) struct Symbol {
    pub(super) name: String,
    pub(super) address: u64,
    size: u64,
}

/// What an instruction costs or does beyond the ordinary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trait {
    /// A locked read-modify-write of memory, `xchg` with memory included.
    Locked,
    /// A locked operation on the stack, or `mfence`: what a sequentially consistent fence becomes.
    Fence,
    /// An integer division.
    Division,
    /// An entry into the kernel.
    SystemCall,
    /// A call of another function, or a jump into one.
    Call,
}

/// All traits, in the order in which they are reported.
const TRAITS: [(Trait, &str); 5] = [
    (Trait::Locked, "locked"),
    (Trait::Fence, "fences"),
    (Trait::Division, "divisions"),
    (Trait::SystemCall, "system calls"),
    (Trait::Call, "calls"),
];

/// How many instructions there were, and how many of each trait.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) instructions: u64,
    traits: [u64; TRAITS.len()],
}

impl Counts {
    /// Counts one instruction.
    pub(super) fn add(&mut self, instruction: &Instruction) {
        self.instructions += 1;
        if let Some(found) = trait_of(instruction) {
            self.traits[found as usize] += 1;
        }
    }

    /// How many instructions of trait `wanted` there were.
    pub(super) fn of(&self, wanted: Trait) -> u64 {
        self.traits[wanted as usize]
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instructions", self.instructions)?;
        for (which, name) in TRAITS {
            write!(f, ", {} {name}", self.traits[which as usize])?;
        }
        Ok(())
    }
}

/// A function with its instructions counted, and those with a trait written out.
pub(super) struct Function {
    symbol: Symbol,
    counts: Counts,
    notable: Vec<String>,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} bytes, {}", self.symbol.name, self.symbol.size, self.counts)?;
        self.notable.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// The functions of the program `data` whose symbol is `wanted`, decoded.
///
/// # Errors
/// If the program cannot be read, or holds no such function.
pub(super) fn functions(data: &[u8], wanted: &str) -> Result<Vec<Function>, Box<dyn Error>> {
    symbols(data, wanted)?.into_iter().map(|symbol| decode(data, symbol)).collect()
}

/// The symbols of functions that are called `wanted`, or whose mangled name has the parts of that path in this order.
///
/// # Errors
/// If the program cannot be read, or holds no such function.
pub(super) fn symbols(data: &[u8], wanted: &str) -> Result<Vec<Symbol>, Box<dyn Error>> {
    let file = object::File::parse(data)?;
    let functions = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
    let named = functions.filter_map(|symbol| {
        Some(Symbol { name: symbol.name().ok()?.to_string(), address: symbol.address(), size: symbol.size() })
    });
    let (exact, others): (Vec<Symbol>, Vec<Symbol>) = named.partition(|symbol| symbol.name == wanted);
    let found = if exact.is_empty() {
        others.into_iter().filter(|symbol| is_path(&symbol.name, wanted)).collect()
    } else {
        exact
    };
    if found.is_empty() {
        return Err(format!("no function is called {wanted}; was it inlined?").into());
    }
    Ok(found)
}

/// Whether the mangled name `mangled` has the parts of `path` in this order, each preceded by its length.
fn is_path(mangled: &str, path: &str) -> bool {
    let mut rest = mangled;
    mangled.starts_with("_")
        && path.split("::").all(|part| {
            let counted = format!("{}{part}", part.len());
            match rest.split_once(&counted) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            }
        })
}

/// Decodes the function behind `symbol`.
fn decode(data: &[u8], symbol: Symbol) -> Result<Function, Box<dyn Error>> {
    let file = object::File::parse(data)?;
    let bytes = file
        .sections()
        .find_map(|section| section.data_range(symbol.address, symbol.size).ok().flatten())
        .ok_or_else(|| format!("{} lies in no section", symbol.name))?;
    let bits = if file.is_64() { 64 } else { 32 };
    let mut counts = Counts::default();
    let mut notable = Vec::new();
    let mut formatter = FastFormatter::new();
    for instruction in Decoder::with_ip(bits, bytes, symbol.address, DecoderOptions::NONE) {
        counts.add(&instruction);
        let target = instruction.near_branch_target();
        let leaves = instruction.flow_control() == FlowControl::UnconditionalBranch
            && !(symbol.address..symbol.address + symbol.size).contains(&target);
        if leaves {
            counts.traits[Trait::Call as usize] += 1;
        }
        if leaves || trait_of(&instruction).is_some() {
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            notable.push(format!("{:#x}: {text}", instruction.ip()));
        }
    }
    Ok(Function { symbol, counts, notable })
}

/// The trait of an instruction, if it has one.
fn trait_of(instruction: &Instruction) -> Option<Trait> {
    let in_memory = (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    match instruction.mnemonic() {
        Mnemonic::Mfence => Some(Trait::Fence),
        _ if instruction.has_lock_prefix() && instruction.memory_base() == Register::RSP => Some(Trait::Fence),
        _ if instruction.has_lock_prefix() => Some(Trait::Locked),
        Mnemonic::Xchg if in_memory => Some(Trait::Locked),
        Mnemonic::Div | Mnemonic::Idiv => Some(Trait::Division),
        Mnemonic::Syscall | Mnemonic::Sysenter | Mnemonic::Int => Some(Trait::SystemCall),
        _ if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) => Some(Trait::Call),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(bytes: &[u8]) -> Option<Trait> {
        trait_of(&Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).decode())
    }

    #[test]
    fn costly_instructions_are_told_apart() {
        for (bytes, expected) in [
            (&[0xF0, 0x48, 0xFF, 0x07][..], Some(Trait::Locked)), // lock inc qword [rdi]
            (&[0x48, 0x87, 0x07][..], Some(Trait::Locked)),       // xchg [rdi], rax
            (&[0x48, 0x87, 0xC3][..], None),                      // xchg rbx, rax
            (&[0xF0, 0x83, 0x0C, 0x24, 0x00][..], Some(Trait::Fence)), // lock or dword [rsp], 0
            (&[0x0F, 0xAE, 0xF0][..], Some(Trait::Fence)),        // mfence
            (&[0x48, 0xF7, 0xF1][..], Some(Trait::Division)),     // div rcx
            (&[0x0F, 0x05][..], Some(Trait::SystemCall)),         // syscall
            (&[0xE8, 0x00, 0x00, 0x00, 0x00][..], Some(Trait::Call)), // call
            (&[0x48, 0x89, 0x07][..], None),                      // mov [rdi], rax
        ] {
            assert_eq!(first(bytes), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn a_path_is_found_in_a_mangled_name() {
        let mangled = "_ZN9zcmi_ring4lane9Publisher7publish17h0123456789abcdefE";
        assert!(is_path(mangled, "lane::Publisher::publish"));
        assert!(!is_path(mangled, "lane::Subscriber::publish"));
        assert!(!is_path(mangled, "publish::lane"));
    }
}
